"""Why adapters that were trained elsewhere cannot become a bank.

BankImportError
├── CheckpointInvalid        files are missing, damaged, or contradict one another
├── CheckpointUnsupported    it computes what no adapter of a bank computes (the message names field and value)
├── CheckpointForeign        it was trained on another model
├── CheckpointsDiffer        checkpoints that no single bank can hold
├── FitTextsInvalid          the texts that a fit needs are missing or cannot be read
└── FitTooPoor               an adapter of a bank comes not close enough to a LoRA
"""

from __future__ import annotations


class BankImportError(Exception):
    """Root of the tree; the message is one sentence and starts with the checkpoint's path where it is about one."""


class CheckpointInvalid(BankImportError):
    pass


class CheckpointUnsupported(BankImportError):
    pass


class CheckpointForeign(BankImportError):
    pass


class CheckpointsDiffer(BankImportError):
    pass


class FitTextsInvalid(BankImportError):
    pass


class FitTooPoor(BankImportError):
    pass
