"""`xpeft bank`."""
