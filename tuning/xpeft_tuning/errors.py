"""Why a profile cannot be tuned.

TuningError
├── DatasetInvalid            a data file or a row in it breaks a rule (the message names line, field and value)
├── DataTooSmall              the rows are in order, but there is nothing to learn from them
├── Unservable                what was learned makes no profile: a number is none, or beyond float16
└── TuningSettingsInvalid     a setting is impossible, in itself or over this bank
"""

from __future__ import annotations


class TuningError(Exception):
    """Root of the tree; the message is one sentence for whoever started the tuning."""


class DatasetInvalid(TuningError):
    pass


class DataTooSmall(TuningError):
    pass


class Unservable(TuningError):
    pass


class TuningSettingsInvalid(TuningError):
    """Args: setting: the one that the message begins with, where the rows or the bank are what it does not go with."""

    def __init__(self, message: str, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting
