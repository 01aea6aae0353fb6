"""`xpeft tune`."""
