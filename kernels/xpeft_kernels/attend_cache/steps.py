"""A step's new tokens cut into what one program takes; on the host, without Triton."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..pieces import cut


def cut_steps(runs: NDArray[np.integer], rows: int) -> NDArray[np.int32]:
    """Runs of new tokens in pieces of at most ``rows`` query rows.

    Args:
        runs: ``[Q, 4]`` (first query row, query rows, first cache row of the sequence, known tokens before the run).
    Returns: ``[K, 4]`` int32, the same of each piece; a run without query rows has none.
    """
    first, length, base, past = runs.T
    owner, done = cut(length, rows)
    size = np.minimum(length[owner] - done, rows)
    return np.stack([first[owner] + done, size, base[owner], past[owner] + done], axis=1).astype(np.int32)
