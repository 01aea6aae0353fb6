"""The text that asks for a random bank: ``random:N=100,R=48,seed=0,std=0.1,activation=relu,layer_norm=true``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from .bank import Activation, Pooling
from .errors import BankSpecInvalid

SPEC_PREFIX = "random:"

_MOST_ADAPTERS = 1024
_WIDEST = 256
_STD_RANGE = (1e-6, 1e3)  # beyond, float16 copies of the values would be all zero, or infinite in a few sums


@dataclass(frozen=True)
class RandomBankSpec:
    """What a text like ``random:N=100,R=48,seed=0`` asks for. ``pooling`` None: the one that suits the model."""

    adapters: int = 100
    width: int = 48
    seed: int = 0
    std: float = 0.1
    activation: Activation = "relu"
    layer_norm: bool = True
    pooling: Pooling | None = None

    def __str__(self) -> str:
        pooling = f",pooling={self.pooling}" if self.pooling else ""
        return (
            f"random:N={self.adapters},R={self.width},seed={self.seed},std={self.std!r},"
            f"activation={self.activation},layer_norm={str(self.layer_norm).lower()}{pooling}"
        )

    @classmethod
    def parse(cls, text: str) -> RandomBankSpec:
        """Read ``random:KEY=VALUE,…``; a key that is left out has its default, ``random:`` alone is all defaults.

        Keys: N adapters a block (1 to 1024), R width (1 to 256), seed (0 to 2^64 - 1), std of the values (1e-6
        to 1e3), activation (relu, gelu), layer_norm (true, false), pooling (mean, cls, last).
        Raises: BankSpecInvalid with the key and the value.
        """
        if not text.startswith(SPEC_PREFIX):
            raise BankSpecInvalid(f"{text!r} does not start with {SPEC_PREFIX!r}, as in random:N=100,R=48,seed=0")
        fields: dict[str, Any] = {}
        rest = text.removeprefix(SPEC_PREFIX)
        for part in rest.split(",") if rest else ():
            key, equals, value = part.partition("=")
            if not equals:
                raise BankSpecInvalid(f"{text!r}: {part!r} is not KEY=VALUE")
            if key not in _KEYS:
                raise BankSpecInvalid(f"{text!r}: unknown key in {part!r}, the keys are {', '.join(_KEYS)}")
            name, read = _KEYS[key]
            if name in fields:
                raise BankSpecInvalid(f"{text!r}: {key} is there twice")
            fields[name] = read(key, value)
        return cls(**fields)


def _integer(least: int, most: int, bounds: str) -> Callable[[str, str], int]:
    def read(key: str, value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", value) or not least <= int(value) <= most:
            raise BankSpecInvalid(f"{key} is {value!r}, it must be a whole number from {bounds}")
        return int(value)

    return read


def _choice(*values: str) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        if value not in values:
            raise BankSpecInvalid(f"{key} is {value!r}, it must be {' or '.join(values)}")
        return value

    return read


def _truth(key: str, value: str) -> bool:
    return _choice("true", "false")(key, value) == "true"


def _std(key: str, value: str) -> float:
    low, high = _STD_RANGE
    try:
        std = float(value)
    except ValueError:
        std = math.nan
    if not low <= std <= high:
        raise BankSpecInvalid(
            f"{key} is {value!r}, it must be a number from {low:g} to {high:g} (0.1 to 0.5 works best)"
        )
    return std


_KEYS: dict[str, tuple[str, Callable[[str, str], object]]] = {
    "N": ("adapters", _integer(1, _MOST_ADAPTERS, f"1 to {_MOST_ADAPTERS}")),
    "R": ("width", _integer(1, _WIDEST, f"1 to {_WIDEST}")),
    "seed": ("seed", _integer(0, 2**64 - 1, "0 to 2^64 - 1")),
    "std": ("std", _std),
    "activation": ("activation", _choice(*get_args(Activation))),
    "layer_norm": ("layer_norm", _truth),
    "pooling": ("pooling", _choice(*get_args(Pooling))),
}
