"""`xpeft profiles`."""
