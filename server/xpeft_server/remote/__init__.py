"""An engine, and what tunes for it, in another process than the one that speaks HTTP."""
