"""LoRA on the feed-forward's last matrix as adapters behind it: the affine map from output to bottleneck is fitted.

The pair reads the matrix' input x (width I), an adapter its output h (width H). Where I > H, A x is no function of h;
what comes closest in the mean over texts is h A_h + c, and how close is measured on texts that took no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xpeft_server.model.plm import Plm

from .affine_fit import AffineFit, AffineMap, ExplainedVariance
from .errors import FitTooPoor
from .feed_forward_end import observe_feed_forward_ends
from .fit_texts import FitTexts
from .imported_adapter import BlockAdapter, ImportedAdapter
from .peft_lora import Lora, LoraPair

_Maps = Sequence[Mapping[int, AffineMap]]


def fit_loras(loras: Sequence[Lora], plm: Plm, texts: FitTexts, *, min_fit: float) -> list[ImportedAdapter]:
    """Turn LoRAs into adapters, all in two passes of the bare PLM over texts.

    Semantics, a block: A_h, c minimise E‖A x - (h A_h + c)‖² over ``texts.fitted`` (see `AffineFit.solve`); the
    adapter is relu(h [A_h, -A_h] + [c, -c]) · scale · [Bᵀ; -Bᵀ], as relu(z) - relu(-z) = z.

    Raises: FitTooPoor if the share of variance of scale · B A x that it explains over ``texts.measured`` is below
        ``min_fit`` in a block.
    """
    maps = _fit(loras, plm, texts.fitted)
    shares = _measure(loras, maps, plm, texts.measured)
    for lora, fits in zip(loras, shares, strict=True):
        for block, share in fits.items():
            if not share >= min_fit:  # NaN is no fit either
                raise FitTooPoor(
                    f"{lora.checkpoint.path}: block {block}: an adapter at the feed-forward's output explains "
                    f"{share:.4f} of the variance of what the LoRA adds, it must be {min_fit:g} (--min-fit) at least"
                )
    return [
        ImportedAdapter(
            lora.checkpoint,
            "relu",
            {block: _adapter(pair, fitted[block]) for block, pair in lora.pairs.items()},
            fits=fits,
            skipped=lora.skipped,
        )
        for lora, fitted, fits in zip(loras, maps, shares, strict=True)
    ]


def _fit(loras: Sequence[Lora], plm: Plm, texts: Sequence[str]) -> _Maps:
    """The map h → A x of every pair; one regression a block, with the bottlenecks of all side by side."""
    stacks = {block: torch.cat(parts).double() for block, parts in _by_block(loras).items()}
    fits = {block: AffineFit(plm.facts.hidden, len(stack)) for block, stack in stacks.items()}

    def observe(block: int, inner: Tensor, output: Tensor) -> None:
        fits[block].add(output, inner @ stacks[block].T)

    observe_feed_forward_ends(plm, texts, stacks, observe)
    maps: list[dict[int, AffineMap]] = [{} for _ in loras]
    for block, fit in fits.items():
        every, start = fit.solve(), 0
        for lora, found in zip(loras, maps, strict=True):
            if block in lora.pairs:
                end = start + len(lora.pairs[block].a)
                found[block] = AffineMap(every.weight[:, start:end], every.bias[start:end])
                start = end
    return maps


def _by_block(loras: Sequence[Lora]) -> dict[int, list[Tensor]]:
    blocks = sorted({block for lora in loras for block in lora.pairs})
    return {block: [lora.pairs[block].a for lora in loras if block in lora.pairs] for block in blocks}


def _measure(loras: Sequence[Lora], maps: _Maps, plm: Plm, texts: Sequence[str]) -> list[dict[int, float]]:
    """Explained variance of what each pair adds."""
    shares = [{block: ExplainedVariance(plm.facts.hidden) for block in lora.pairs} for lora in loras]

    def observe(block: int, inner: Tensor, output: Tensor) -> None:
        for lora, fitted, share in zip(loras, maps, shares, strict=True):
            if block in lora.pairs:
                a, up = lora.pairs[block].a.double(), lora.pairs[block].b.double().T
                share[block].add(inner @ a.T @ up, fitted[block](output) @ up)

    observe_feed_forward_ends(plm, texts, _by_block(loras), observe)
    return [{block: explained.share() for block, explained in share.items()} for share in shares]


def _adapter(pair: LoraPair, fitted: AffineMap) -> BlockAdapter:
    down, bias, up = fitted.weight.float(), fitted.bias.float(), pair.b.T
    return BlockAdapter(
        down=torch.cat([down, -down], dim=1),
        down_bias=torch.cat([bias, -bias]),
        up=torch.cat([up, -up]),
        up_bias=torch.zeros(up.shape[1]),
    )
