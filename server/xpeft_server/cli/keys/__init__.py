"""`xpeft keys`."""
