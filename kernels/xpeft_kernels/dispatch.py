"""The one place that decides which implementation of an operator runs."""

from __future__ import annotations

import enum
import logging
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

logger = logging.getLogger(__name__)


class Impl(enum.Enum):
    """``AUTO`` takes the best one that the device can run; any other choice is binding."""

    AUTO = "auto"
    REFERENCE = "reference"
    TRITON = "triton"


class ImplUnavailable(RuntimeError):
    """An implementation was asked for by name that the operator does not have, or the device cannot run."""


class Operator:
    """An operator's implementations by name, and which one runs on a device.

    Args:
        name: the operator's public name.
        implementations: at least ``Impl.REFERENCE``, which runs on every device.
    """

    def __init__(self, name: str, implementations: Mapping[Impl, Callable[..., Any]]) -> None:
        self.name = name
        self._implementations = dict(implementations)
        self._logged: set[tuple[str, Impl]] = set()

    def choose(self, device_type: str, impl: Impl = Impl.AUTO) -> Impl:
        """Raises: ImplUnavailable if ``impl`` names one that cannot run on ``device_type``."""
        if impl is Impl.AUTO:
            fastest = Impl.TRITON if device_type == "cuda" else Impl.REFERENCE
            return fastest if fastest in self._implementations else Impl.REFERENCE
        runs_kernels = device_type == "cuda" or _interpreted()
        usable = [each for each in self._implementations if each is Impl.REFERENCE or runs_kernels]
        if impl not in usable:
            has = ", ".join(each.value for each in usable)
            raise ImplUnavailable(
                f"{self.name}: implementation {impl.value!r} cannot run on {device_type!r} (it has: {has})"
            )
        return impl

    def __call__(self, device_type: str, impl: Impl) -> Callable[..., Any]:
        chosen = self.choose(device_type, impl)
        if (device_type, chosen) not in self._logged:
            self._logged.add((device_type, chosen))
            logger.info("%s runs as %s on %s", self.name, chosen.value, device_type)
        return self._implementations[chosen]


def deferred(module: str, name: str) -> Callable[..., Any]:
    """An implementation whose module, and Triton with it, is imported at its first call."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **options)

    return call


def _interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU, as it does in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
