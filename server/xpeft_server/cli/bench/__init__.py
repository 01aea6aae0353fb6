"""`xpeft bench`."""
