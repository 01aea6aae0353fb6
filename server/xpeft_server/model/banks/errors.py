"""What can be wrong with a bank.

BankError              a ModelError: the model with this bank in it cannot be had
├── BankInvalid        its tensors or metadata contradict themselves, or its file cannot be read
├── BankSpecInvalid    a text like ``random:N=100`` names an unknown key or an impossible value
└── ForeignBank        it was made for another language model
"""

from __future__ import annotations

from ..errors import ModelError


class BankError(ModelError):
    """Root of the tree; the message names the tensor, key or file, its value, and what would be right."""


class BankInvalid(BankError):
    pass


class BankSpecInvalid(BankError):
    pass


class ForeignBank(BankError):
    pass
