"""Trains the adapters that profiles choose from, together with the heads that they share.

`warm_start`: bank, shared head and the training users' masks learn together (X-PEFT's warm start, arXiv 2401.16137).
`mixture`: adapters of one task take turns at random, and agree in the end (AdaMix, arXiv 2205.12410).
"""
