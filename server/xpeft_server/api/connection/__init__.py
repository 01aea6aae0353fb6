"""Connections of clients, from the first byte to the last."""
