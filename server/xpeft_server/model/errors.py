"""Why a PLM or a bank cannot be used; raised at the start, never by a request.

ModelError
├── UnsupportedModel      a model type that is not in the families' table
└── ModelUnusable         files missing or damaged, no fast tokenizer, weights that do not load
"""

from __future__ import annotations


class ModelError(Exception):
    """Root of the tree."""


class UnsupportedModel(ModelError):
    pass


class ModelUnusable(ModelError):
    pass
