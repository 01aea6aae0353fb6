"""Trains the adapters that profiles choose from, together with the heads that they share.

`warm_start`: bank, shared head and the training users' masks learn together (X-PEFT's warm start, arXiv 2401.16137).
`branches`: every adapter goes on alone from one that all users share, on rows of users of its own (arXiv 2208.03306).
`mixture`: adapters of one task take turns at random, and agree in the end (AdaMix, arXiv 2205.12410).
"""
