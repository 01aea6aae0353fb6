"""`xpeft serve`: where the parts of a server are put together."""
