"""Heads fitted on a GPU that is not there, by tensors that only say on which device they would be.

An operator that is given tensors of two devices, or asks for a value that only the device knows, fails: but for the
two looks that are pretended here, one in each descent.

A program of its own, as it gives PyTorch a device type for good. Prints as JSON how each of three ways failed: a sound
one, one that leaves a table on the host, and one that looks. Run: python head_placement.py
"""

from __future__ import annotations

import json
import sys
import traceback

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from xpeft_tuning import head_descent, head_fit
from xpeft_tuning.linear_head import HeadRows, LinearHead
from xpeft_tuning.rotated_rows import rotate

GPU = torch.device("privateuseone", 0)
SHAPES = ((30, 8, 2), (30, 8, 3), (20, 40, 9), (20, 40, 1))


def unsolved(active: Tensor) -> Tensor:
    """One of them, then none."""
    if active.device != GPU:
        raise AssertionError(f"who is active is known on {active.device}")
    return torch.arange(1 if len(active) > 1 else 0, device=GPU)


def fit(*, astray: bool = False) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = []
        for rows, hidden, classes in (*SHAPES, *SHAPES):
            targets = torch.zeros(rows, dtype=torch.int64 if classes > 1 else torch.float32)
            features = torch.empty(rows, hidden, device=GPU)
            given.append(HeadRows(features, targets, LinearHead.zero(classes, hidden), torch.ones(rows)))
        rotated = rotate(given)
        for group in rotated:
            tell = torch.arange(len(group.places), device=GPU)
            folds = head_fit._folds(group, [0] * len(group.places))
            if astray:
                folds = torch.zeros(folds.shape, dtype=folds.dtype)
            losses = head_fit._validation_losses(group, tell, folds)
            if losses.device != GPU or losses.shape != (len(group.places), len(head_fit.PENALTIES)):
                raise AssertionError(f"losses of {tuple(losses.shape)} are on {losses.device}")
        heads = head_fit.fit_linear_heads(rotated, penalties=[1.0] * len(given))
    for head, each in zip(heads, given, strict=True):
        if head.weight.device != GPU or head.weight.shape != each.drawn_to.weight.shape:
            raise AssertionError(f"a head of {tuple(head.weight.shape)} is on {head.weight.device}")


def failure(*, astray: bool = False) -> str | None:
    try:
        fit(astray=astray)
    except Exception:
        return traceback.format_exc()
    return None


def main() -> None:
    _setup_privateuseone_for_python_backend("gpu")
    found = {"waiting": failure()}
    head_descent._unsolved = unsolved
    found |= {"sound": failure(), "astray": failure(astray=True)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
