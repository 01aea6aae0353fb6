"""Operators that serve many profiles in one pass. Each folder holds one operator: its entry, its PyTorch reference
(the specification, and the production path on CPU) and, where there is one, its Triton kernel.
"""

from .aggregate import aggregate_adapters, aggregate_adapters_ref
from .apply import Norm, apply_adapters, apply_adapters_ref
from .dispatch import Impl, ImplUnavailable, chosen_implementations
from .form import AdapterForm
from .heads import apply_heads, apply_heads_ref
from .padding import Padding
from .tiles import MIN_ROWS, Tiles

__all__ = [
    "MIN_ROWS",
    "AdapterForm",
    "Impl",
    "ImplUnavailable",
    "Norm",
    "Padding",
    "Tiles",
    "aggregate_adapters",
    "aggregate_adapters_ref",
    "apply_adapters",
    "apply_adapters_ref",
    "apply_heads",
    "apply_heads_ref",
    "chosen_implementations",
]
