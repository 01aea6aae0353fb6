"""Tunes profiles over a frozen PLM and a frozen bank of adapters (X-PEFT, arXiv 2401.16137).

Start with `mask_tuner.tune_profile`. Modules that need torch are imported by whoever uses them.
"""
