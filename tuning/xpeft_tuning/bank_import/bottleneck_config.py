"""Which bottleneck adapters of the ``adapters`` library compute exactly what an adapter of a bank computes.

Read from its sources at 1.3 (methods/modeling.py, methods/bottleneck.py): for the values below, in evaluation mode,
``h + scaling · (act(h Aᵀ + c) Bᵀ + d)`` is what reaches the block's residual add, h being the feed-forward's output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from xpeft_server.model.banks.bank import Activation

from .checkpoint import Checkpoint, check_finite
from .errors import CheckpointInvalid, CheckpointUnsupported

_FITS = "a bank takes what SeqBnConfig(original_ln_before=False) trains"


class _Rule(NamedTuple):
    """Values that keep the arithmetic, the first of them the library's default; what another value means."""

    allowed: tuple[object, ...]
    otherwise: str


_RULES: Mapping[str, _Rule] = {
    "mh_adapter": _Rule((False,), "it has adapters behind the attention too"),
    "output_adapter": _Rule((True,), "it has no adapters behind the feed-forward"),
    "cross_adapter": _Rule((False,), "it has adapters behind the cross-attention too"),
    "original_ln_before": _Rule((False,), "it reads the block's sum, after residual add and LayerNorm"),
    "original_ln_after": _Rule((True,), "the block's residual add and LayerNorm do not follow it"),
    "residual_before_ln": _Rule((True, False), "what it adds to is not the feed-forward's output"),
    "ln_before": _Rule((False,), "it has a LayerNorm before its down-projection"),
    "ln_after": _Rule((False,), "it has a LayerNorm after its up-projection"),
    "is_parallel": _Rule((False,), "it reads the feed-forward's input"),
    "use_gating": _Rule((False,), "a gate scales what it adds"),
    "phm_layer": _Rule((False,), "its projections are Kronecker products"),
    "inv_adapter": _Rule((None,), "it changes the embeddings too"),
    "invertible_adapter": _Rule((None,), "it changes the embeddings too"),
}
_REQUIRED = ("mh_adapter", "output_adapter", "non_linearity")
_READ = ("architecture", "non_linearity", "scaling", "leave_out")
_OF_TRAINING = ("dropout", "stochastic_depth", "init_weights", "init_weights_seed")
_OF_WHAT_IS_OFF = (
    "adapter_residual_before_ln",
    "inv_adapter_reduction_factor",
    "phm_dim",
    "phm_rank",
    "phm_bias",
    "phm_c_init",
    "phm_init_range",
    "learn_phm",
    "shared_phm_rule",
    "factorized_phm_rule",
    "shared_W_phm",
    "factorized_phm_W",
    "hypercomplex_nonlinearity",
)
_KNOWN = {*_RULES, *_READ, *_OF_TRAINING, *_OF_WHAT_IS_OFF, "reduction_factor"}  # the last is in the tensors' shapes

_ACTIVATIONS: Mapping[str, Activation] = {"relu": "relu", "gelu": "gelu", "gelu_python": "gelu"}
_BEFORE_VERSIONS: Mapping[str, str] = {"gelu": "gelu_new", "gelu_orig": "gelu"}


class BottleneckConfig(NamedTuple):
    """``left_out``: blocks without an adapter by intent."""

    activation: Activation
    scaling: float
    left_out: frozenset[int]


def read_bottleneck_config(checkpoint: Checkpoint) -> BottleneckConfig:
    """Raises: CheckpointUnsupported with every field that stands in the way; CheckpointInvalid."""
    config = checkpoint.config["config"]
    if not isinstance(config, dict):
        raise CheckpointInvalid(f"{checkpoint.path}: config is {config!r:.80}, it must be an object")
    if config.get("architecture") is not None:
        raise CheckpointUnsupported(
            f"{checkpoint.path}: architecture is {config['architecture']!r}, it must be a bottleneck adapter; {_FITS}"
        )
    for field in _REQUIRED:
        if field not in config:
            raise CheckpointInvalid(f"{checkpoint.path}: config has no {field}")
    activation, named = _activation(checkpoint, config["non_linearity"])
    wrong = [*_wrong(config), *named]
    if wrong or activation is None:
        raise CheckpointUnsupported(f"{checkpoint.path}: {'; '.join(wrong)}; {_FITS}")
    scaling = config.get("scaling", 1.0)
    check_finite(checkpoint.path, "scaling", scaling)
    return BottleneckConfig(activation, float(scaling), _left_out(checkpoint, config))


def _wrong(config: Mapping[str, Any]) -> list[str]:
    found = []
    for field, rule in _RULES.items():
        if (value := config.get(field, rule.allowed[0])) not in rule.allowed:
            found.append(f"{field} is {json.dumps(value)} ({rule.otherwise})")
    scaling = config.get("scaling", 1.0)
    if isinstance(scaling, bool) or not isinstance(scaling, int | float):
        found.append(f"scaling is {json.dumps(scaling)}, it must be a number")
    found += [
        f"{field} is {json.dumps(value)}, a field that is not known here"
        for field, value in config.items()
        if field not in _KNOWN
    ]
    return found


def _activation(checkpoint: Checkpoint, name: object) -> tuple[Activation | None, list[str]]:
    """The library's own words for it; files without a version are from before "gelu" meant the exact one."""
    lower = str(name).lower()
    if "version" not in checkpoint.config:
        lower = _BEFORE_VERSIONS.get(lower, lower)
    activation = _ACTIVATIONS.get(lower)
    meaning = f" ({lower})" if lower != name else ""
    wrong = f"non_linearity is {json.dumps(name)}{meaning}, it must be relu or gelu (the exact one)"
    return activation, [] if activation else [wrong]


def _left_out(checkpoint: Checkpoint, config: Mapping[str, Any]) -> frozenset[int]:
    left_out = config.get("leave_out") or []
    if not isinstance(left_out, list) or not all(isinstance(block, int) for block in left_out):
        raise CheckpointInvalid(f"{checkpoint.path}: leave_out is {json.dumps(left_out)}, it must be a list of numbers")
    return frozenset(left_out)
