"""Turns adapters that were trained elsewhere into one bank: each checkpoint becomes one n of N.

Start with `imported_bank.import_bank`. Modules that need torch are imported by whoever uses them.
"""
