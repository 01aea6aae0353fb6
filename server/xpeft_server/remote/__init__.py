"""An engine and its tuner in another process than the one that speaks HTTP."""
