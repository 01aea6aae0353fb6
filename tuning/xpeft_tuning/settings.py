"""What tuning can be told. Light to import: the command line reads its options from here."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from .errors import TuningSettingsInvalid

Kind = Literal["hard", "soft"]
StopOn = Literal["loss", "accuracy"]
ClassWeights = Literal["balanced"]
_COUNTS: Final = ("k", "epochs", "batch_rows", "batch_tokens", "patience")
_MOST: Final = 2**31 - 1
_LEAST: Final = {
    **dict.fromkeys(("lr_masks", "lr_norm", "lr_head", "head_penalty", "mask_spread", "gumbel"), 0),
    **dict.fromkeys(("temperature", "last_temperature"), 1e-3),  # logits divided by less may be beyond float32
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningSettings:
    """How a profile is tuned; the defaults are for tens to hundreds of rows.

    ``metadata["help"]`` of a field says what it is; learning rates are AdamW's, fall linearly to zero, and keep
    their part as it starts where they are 0. The same seed gives the same profile on the same machine with as many
    threads.

    Raises: TuningSettingsInvalid, naming setting and value.
    """

    kind: Kind = field(default="hard", metadata={"help": "hard masks choose k adapters, soft ones weigh them all"})
    k: int | None = field(
        default=None, metadata={"help": "adapters that each row of a hard mask chooses; half of the bank by default"}
    )
    epochs: int = field(default=15, metadata={"help": "maximum passes over the train rows"})
    batch_rows: int = field(default=16, metadata={"help": "rows in one step"})
    batch_tokens: int = field(
        default=4096, metadata={"help": "maximum tokens on the device at once; larger steps run in parts"}
    )
    lr_masks: float = field(default=0.1, metadata={"help": "peak learning rate of the masks"})
    lr_norm: float = field(default=0.02, metadata={"help": "peak learning rate of the LayerNorm affine"})
    lr_head: float = field(default=0.001, metadata={"help": "peak learning rate of the profile's own head"})
    head_penalty: float | None = field(
        default=None,
        metadata={
            "help": "weight in the loss of the squared distance between the head and zero or the shared head; by"
            " default chosen by cross-validation"
        },
    )
    shared_head: str | None = field(
        default=None,
        metadata={"help": "one of the bank's heads, used as it is; by default the profile has a head of its own"},
    )
    own_head: bool = field(
        default=False,
        metadata={
            "help": "with shared_head: a head of its own that starts as the shared one and is regularised towards it"
        },
    )
    mask_spread: float = field(
        default=0.01,
        metadata={"help": "standard deviation of the initial mask logits; a step moves each by up to lr_masks"},
    )
    gumbel: float = field(
        default=0.0, metadata={"help": "scale of the Gumbel noise on the mask logits in each step; 0 for none"}
    )
    temperature: float = field(default=1.0, metadata={"help": "divides the mask logits before their softmax"})
    last_temperature: float | None = field(
        default=None,
        metadata={"help": "temperature of the last step, reached geometrically; by default the same as the first"},
    )
    class_weights: ClassWeights | None = field(
        default=None,
        metadata={"help": "balanced gives rows of rare labels more weight, so that all labels count the same"},
    )
    held_out: float = field(
        default=0.2, metadata={"help": "share of each label's rows held out for measuring, if the rows have no split"}
    )
    stop_on: StopOn | None = field(
        default=None,
        metadata={
            "help": "keep the epoch with the best loss or accuracy on dev rows (drawn if there are none); by default"
            " the last epoch"
        },
    )
    patience: int = field(
        default=5, metadata={"help": "with --stop-on, end tuning after this many epochs without improvement"}
    )
    seed: int = field(default=0, metadata={"help": "seed of everything random"})
    description: str | None = field(default=None, metadata={"help": "a line about the profile, stored in it"})

    def __post_init__(self) -> None:
        for name, choices in (("kind", Kind), ("stop_on", StopOn), ("class_weights", ClassWeights)):
            value = getattr(self, name)
            if value is not None and value not in get_args(choices):
                raise TuningSettingsInvalid(f"{name} is {value!r}, it must be {' or '.join(get_args(choices))}")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                raise TuningSettingsInvalid(f"{name} is {value}, it must be from 1 to {_MOST}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                wanted = f"at least {least}" if math.isfinite(value) else "a finite number"
                raise TuningSettingsInvalid(f"{name} is {value}, it must be {wanted}")
        if self.kind == "soft" and self.k is not None:
            raise TuningSettingsInvalid(f"k is {self.k}, but soft masks choose none: they weigh the whole bank")
        if not 0 <= self.held_out < 1:
            raise TuningSettingsInvalid(f"held_out is {self.held_out}, it must be from 0 to below 1")
        if not 0 <= self.seed < 2**63:
            raise TuningSettingsInvalid(f"seed is {self.seed}, it must be from 0 to 2^63 - 1")
        self._check_description()

    def _check_description(self) -> None:
        """A profile that cannot be written is better refused before its tuning than after."""
        if self.description is None:
            return
        from xpeft_profiles import ProfileInvalid
        from xpeft_profiles.texts import check_description

        try:
            check_description(self.description)
        except ProfileInvalid as error:
            raise TuningSettingsInvalid(error.message) from None

    @property
    def has_own_head(self) -> bool:
        """Whether the profile brings a head, rather than only naming one of the bank's."""
        return self.own_head or self.shared_head is None

    def temperature_at(self, share: float) -> float:
        """Args: share: of the steps that are done, 0 to 1."""
        last = self.temperature if self.last_temperature is None else self.last_temperature
        return float(self.temperature * (last / self.temperature) ** share)

    def chosen(self, adapters: int) -> int:
        """k over a bank of N adapters."""
        return max(1, adapters // 2) if self.k is None else self.k

    def check_fits(self, adapters: int, heads: Collection[str]) -> None:
        """Args: of a bank: how many adapters a block has, names of its heads.

        Raises: TuningSettingsInvalid if the bank cannot do what is asked.
        """
        if self.kind == "hard" and self.chosen(adapters) > adapters:
            raise TuningSettingsInvalid(f"k is {self.k}, the bank has N={adapters} adapters to choose from", "k")
        if self.shared_head is not None and self.shared_head not in heads:
            there = ", ".join(heads) or "none"
            message = f"shared_head is {self.shared_head!r}, the bank's heads are: {there}"
            raise TuningSettingsInvalid(message, "shared_head")
