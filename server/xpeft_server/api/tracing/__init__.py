"""What is told of a request: access log, Server-Timing, spans."""
