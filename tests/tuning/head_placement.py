"""Heads fitted on a GPU that is not there, by tensors that only say on which device they would be.

An operator that is given tensors of two devices, or asks for a value that only the device knows, fails: but for the
two looks that are pretended here, one in each descent.

A program of its own, as it gives PyTorch a device type for good.
Run: python head_placement.py; with --astray it leaves a table on the host, with --waiting it looks: both have to fail.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from xpeft_tuning import head_descent, head_fit
from xpeft_tuning.linear_head import HeadRows, LinearHead
from xpeft_tuning.rotated_rows import rotate

WAY = sys.argv[1] if len(sys.argv) > 1 else ""
GPU = torch.device("privateuseone", 0)
SHAPES = ((30, 8, 2), (30, 8, 3), (20, 40, 9), (20, 40, 1))


def unsolved(active: Tensor) -> Tensor:
    """One of them, then none."""
    if active.device != GPU:
        raise AssertionError(f"who is active is known on {active.device}")
    return torch.arange(1 if len(active) > 1 else 0, device=GPU)


def main() -> None:
    _setup_privateuseone_for_python_backend("gpu")
    if WAY != "--waiting":
        head_descent._unsolved = unsolved
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = []
        for rows, hidden, classes in (*SHAPES, *SHAPES):
            targets = torch.zeros(rows, dtype=torch.int64 if classes > 1 else torch.float32)
            features = torch.empty(rows, hidden, device=GPU)
            given.append(HeadRows(features, targets, LinearHead.zero(classes, hidden), torch.ones(rows)))
        rotated = rotate(given)
        for group in rotated:
            tell = torch.arange(len(group.places), device=GPU)
            left_out = head_fit._left_out(group, [0] * len(group.places))
            if WAY == "--astray":
                left_out = torch.zeros(left_out.shape, dtype=left_out.dtype)
            losses = head_fit._losses(group, tell, left_out)
            if losses.device != GPU or losses.shape != (len(group.places), len(head_fit.PENALTIES)):
                raise AssertionError(f"losses of {tuple(losses.shape)} are on {losses.device}")
        heads = head_fit.fit_linear_heads(rotated, penalties=[1.0] * len(given))
    for head, each in zip(heads, given, strict=True):
        if head.weight.device != GPU or head.weight.shape != each.drawn_to.weight.shape:
            raise AssertionError(f"a head of {tuple(head.weight.shape)} is on {head.weight.device}")


if __name__ == "__main__":
    main()
