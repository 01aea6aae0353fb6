"""What bank training can be told. Light to import: the command line reads its options from here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from ..errors import TuningSettingsInvalid

Activation = Literal["relu", "gelu"]
Pooling = Literal["mean", "cls", "last"]
Method = Literal["users", "branches", "mixture"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BankTrainingSettings:
    """How a bank is trained.

    ``metadata["help"]`` of a field says what it is, ``metadata["methods"]`` for which `Method` alone it is:
    ``users`` is `warm_start.WarmStart`, ``branches`` is `branches.Branches`, ``mixture`` is `mixture.MixtureTrainer`.

    Learning rates are AdamW's; they rise over the first twentieth of the steps and fall linearly to zero. The same
    seed gives the same bank on the same machine with as many threads.

    Raises: TuningSettingsInvalid, naming setting and value.
    """

    adapters: int = field(default=100, metadata={"help": "adapters in each block (N)"})
    width: int = field(default=48, metadata={"help": "width of each adapter's bottleneck (R)"})
    activation: Activation = field(default="relu", metadata={"help": "function in the bottleneck: relu or gelu"})
    layer_norm: bool = field(default=True, metadata={"help": "whether the bottleneck has a LayerNorm"})
    biases: bool = field(default=False, metadata={"help": "whether adapters have biases, in both projections"})
    pooling: Pooling | None = field(
        default=None,
        metadata={"help": "how tokens become a text's vector: mean, cls or last; by default what suits the model"},
    )
    head: str = field(default="shared", metadata={"help": "name of the head that is trained with the bank"})
    epochs: int = field(default=2, metadata={"help": "passes over the train rows"})
    batch_tokens: int = field(
        default=8192, metadata={"help": "maximum tokens on the device at once; larger steps run in parts"}
    )
    lr_bank: float = field(default=0.0005, metadata={"help": "peak learning rate of the adapters"})
    lr_head: float = field(
        default=0.002,
        metadata={"help": "peak learning rate of the shared head", "methods": ("users", "mixture")},
    )
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's weight decay of the adapters"})
    dropout: float = field(
        default=0.0,
        metadata={
            "help": "dropout against overfitting: share of values zeroed at random in each block's input to its"
            " adapters and wherever the language model has dropout of its own"
        },
    )
    std_down: float = field(default=0.05, metadata={"help": "standard deviation of the initial down-projections"})
    std_up: float = field(default=0.02, metadata={"help": "standard deviation of the initial up-projections"})
    start_apart: float = field(
        default=0.05,
        metadata={
            "help": "initial difference between copies of an adapter of --start, in standard deviations of its weights",
            "methods": ("users", "mixture"),
        },
    )
    seed: int = field(default=0, metadata={"help": "seed of everything random"})

    k: int | None = field(
        default=None,
        metadata={
            "help": "adapters that each row of a user's masks chooses; half of the bank by default",
            "methods": ("users",),
        },
    )
    batch_users: int = field(
        default=8, metadata={"help": "maximum users in one step", "methods": ("users", "branches")}
    )
    user_rows: int = field(
        default=4, metadata={"help": "rows of each user in one step", "methods": ("users", "branches")}
    )
    lr_masks: float = field(
        default=0.02, metadata={"help": "peak learning rate of the users' masks", "methods": ("users",)}
    )
    lr_norm: float = field(
        default=0.0005,
        metadata={"help": "peak learning rate of the users' LayerNorm affines", "methods": ("users", "branches")},
    )
    lr_own_head: float = field(
        default=0.0005,
        metadata={
            "help": "peak learning rate of each user's head offset from the shared head",
            "methods": ("users", "branches"),
        },
    )
    own_head_penalty: float = field(
        default=0.1,
        metadata={
            "help": "weight of the squared norm of each user's head offset from the shared head",
            "methods": ("users", "branches"),
        },
    )
    gumbel: float = field(
        default=0.0,
        metadata={
            "help": "scale of the Gumbel noise on the users' mask logits in each step; 0 for none",
            "methods": ("users",),
        },
    )

    batch_rows: int = field(default=32, metadata={"help": "rows in one step", "methods": ("mixture",)})
    share_up: bool = field(
        default=False,
        metadata={"help": "share one up-projection between all adapters of a block", "methods": ("mixture",)},
    )
    consistency: float = field(
        default=1.0,
        metadata={"help": "weight of the symmetric KL divergence between two random passes", "methods": ("mixture",)},
    )

    def __post_init__(self) -> None:
        for name, choices in (("activation", Activation), ("pooling", Pooling)):
            value = getattr(self, name)
            if value is not None and value not in get_args(choices):
                raise TuningSettingsInvalid(f"{name} is {value!r}, it must be {' or '.join(get_args(choices))}")
        for name, least, most in (*_COUNTS, ("k", 1, self.adapters)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise TuningSettingsInvalid(f"{name} is {value}, it must be from {least} to {most}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise TuningSettingsInvalid(f"{name} is {value}, it must be a number from 0 up")
        if not 0 <= self.dropout < 1:
            raise TuningSettingsInvalid(f"dropout is {self.dropout}, it must be from 0 up and below 1")

    def too_high(self, names: Sequence[str]) -> tuple[str, ...]:
        """Which of these settings a training most likely diverged by: those that are furthest above their defaults,
        by a tenth of the furthest's factor at least; the first if none is above."""
        factors = {each.name: getattr(self, each.name) / each.default for each in fields(self) if each.name in names}
        high = {name: factor for name, factor in factors.items() if factor > 1}
        furthest = max(high.values(), default=1.0)
        return tuple(name for name in names if high.get(name, 0.0) >= furthest / 10) or (names[0],)


_COUNTS = (
    *(("adapters", 1, 1024), ("width", 1, 256), ("seed", 0, 2**63 - 1)),
    *((name, 1, 2**31 - 1) for name in ("epochs", "batch_tokens", "batch_users", "user_rows", "batch_rows")),
)
_NUMBERS = (
    *("lr_bank", "lr_head", "weight_decay", "std_down", "std_up", "start_apart"),
    *("lr_masks", "lr_norm", "lr_own_head", "own_head_penalty", "gumbel", "consistency"),
)
