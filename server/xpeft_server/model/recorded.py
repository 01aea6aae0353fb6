"""Named ranges in the trace of a profiler that happens to record this thread."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final

from torch._C._autograd import _profiler_enabled
from torch.profiler import record_function

_NOTHING: Final = nullcontext()


def recorded(name: str) -> AbstractContextManager[object]:
    """The range ``xpeft::NAME``.

    Without a profiler this only asks whether there is one, where ``record_function`` would run an operator.
    """
    return record_function(f"xpeft::{name}") if _profiler_enabled() else _NOTHING
