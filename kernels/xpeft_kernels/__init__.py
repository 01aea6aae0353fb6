"""Operators that serve many profiles in one pass. Each folder holds one operator: its entry, its PyTorch reference
(the specification, and the production path on CPU) and, where there is one, its Triton kernel.
"""

from .aggregate import PROFILE_TILES, aggregate_adapters, aggregate_adapters_ref
from .apply import FEW_TOKENS, Norm, apply_adapters, apply_adapters_even, apply_adapters_ref, piece_rows
from .attend import attend_packed, attend_packed_ref, query_rows
from .attend_cache import PlacedSteps, StepRoom, attend_cache, attend_cache_ref, cut_steps, spare_pieces, step_rows
from .dispatch import Impl, ImplUnavailable
from .form import AdapterForm
from .fused_attention import without_cudnn
from .heads import apply_heads, apply_heads_ref
from .operators import chosen_implementations
from .padding import Padding
from .pool import mean_rows, mean_rows_ref
from .sequences import PlacedSequences, Sequences, cut_sequences
from .tiles import MIN_ROWS, PlacedTiles, Tiles, cut_runs
from .visible_keys import visible_keys

__all__ = [
    "FEW_TOKENS",
    "MIN_ROWS",
    "PROFILE_TILES",
    "AdapterForm",
    "Impl",
    "ImplUnavailable",
    "Norm",
    "Padding",
    "PlacedSequences",
    "PlacedSteps",
    "PlacedTiles",
    "Sequences",
    "StepRoom",
    "Tiles",
    "aggregate_adapters",
    "aggregate_adapters_ref",
    "apply_adapters",
    "apply_adapters_even",
    "apply_adapters_ref",
    "apply_heads",
    "apply_heads_ref",
    "attend_cache",
    "attend_cache_ref",
    "attend_packed",
    "attend_packed_ref",
    "chosen_implementations",
    "cut_runs",
    "cut_sequences",
    "cut_steps",
    "mean_rows",
    "mean_rows_ref",
    "piece_rows",
    "query_rows",
    "spare_pieces",
    "step_rows",
    "visible_keys",
    "without_cudnn",
]
