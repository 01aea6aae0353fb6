"""What goes into the feed-forward's last matrix, and what comes out of it, over given texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from xpeft_server.model.adapted import AdaptedFeedForward
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm

from ..token_runs import token_runs

_TOKENS = 2048  # in one forward


Observe = Callable[[int, Tensor, Tensor], None]
"""Takes a block's number, ``[T, I]`` and, that times the matrix, ``[T, H]``, h of the bank's equation; float64, CPU."""


def last_matrix(plm: Plm, block: int) -> nn.Module:
    """The module of ``family.weight``, where it is once adapters are installed."""
    place = plm.family.feed_forward
    feed_forward = plm.model.get_submodule(f"{plm.family.blocks}.{block}.{place}")
    if isinstance(feed_forward, AdaptedFeedForward):
        feed_forward = feed_forward.inner
    return feed_forward.get_submodule(plm.family.weight.removeprefix(f"{place}."))


@torch.inference_mode()
def observe_feed_forward_ends(plm: Plm, texts: Sequence[str], blocks: Collection[int], observe: Observe) -> None:
    """Run the bare PLM over the texts, a batch at a time; a text beyond the model's limit loses its end.

    A block at a time is in memory in float64: ``observe`` is called in the middle of the forward.
    """
    tokenized = plm.tokenizer.encode([(text, None) for text in texts], truncate=True)
    ordered = sorted(filter(len, tokenized), key=len)
    for run in token_runs(map(len, ordered), _TOKENS):
        packed = pack(ordered[run], None, first_position=plm.first_position, device=plm.device)
        with ExitStack() as hooks:
            for block in blocks:
                hooks.enter_context(_hook(plm, block, packed.owners.numel(), observe))
            plm.forward(packed)


def _hook(plm: Plm, block: int, tokens: int, observe: Observe) -> RemovableHandle:
    """The rows behind ``tokens`` are filler."""

    def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inner, out = (rows.reshape(-1, rows.shape[-1])[:tokens].double().cpu() for rows in (arguments[0], output))
        observe(block, inner, out)

    return last_matrix(plm, block).register_forward_hook(record)
