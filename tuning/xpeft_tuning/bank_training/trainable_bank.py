"""A bank and its shared head while they learn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from xpeft_kernels import AdapterForm
from xpeft_server.model.banks.bank import Bank, Pooling, SharedHead
from xpeft_server.model.banks.checks import check_head
from xpeft_server.model.plm import Plm
from xpeft_server.model.plm_facts import PlmFacts

from ..bank_parts import BankParts
from ..errors import TuningSettingsInvalid
from ..evaluation import Score
from .beginning import check_beginning, copies
from .settings import BankTrainingSettings

_WARM_UP = 0.05


class TrainableBank:
    """Adapters and one head as parameters, float32.

    Args:
        labels: C labels of the head, or one where they are numbers.
        start: adapters and head to start from, repeated if there are fewer; None for random ones.
        others: settings besides the bank's own that may make its training diverge.

    Attributes:
        parts: ``[L, N, split]`` and ``[L, N, D - split]`` rows of the form, as tuning multiplies masks with them.
        head_weight, head_bias: ``[C, H]`` and ``[C]``, zero at the start.

    Raises: BankInvalid if the head's name or labels cannot be a bank's, or ``start`` does not fit.
    """

    def __init__(
        self,
        plm: Plm,
        labels: tuple[str, ...],
        settings: BankTrainingSettings,
        start: Bank | None = None,
        *,
        others: Sequence[str] = (),
    ) -> None:
        self._plm = plm
        self._labels = labels
        self._settings = settings
        self._suspects = ("lr_bank", "lr_head", *others)
        self.pooling: Pooling = settings.pooling or ("last" if plm.facts.decoder else "mean")
        if start is not None:
            check_beginning(start, plm, settings, labels)
            self.pooling = start.pooling
        self.form = _form(settings, plm.facts.hidden)
        generator = torch.Generator().manual_seed(settings.seed)
        blocks, hidden = plm.facts.blocks, plm.facts.hidden
        ups = 1 if settings.share_up else settings.adapters
        self._down = self._parameter(blocks, settings.adapters, self.form.split, settings.std_down, generator)
        self._up = self._parameter(blocks, ups, self.form.bank_row - self.form.split, settings.std_up, generator)
        self.head_weight = nn.Parameter(torch.zeros(len(labels), hidden, device=plm.device))
        self.head_bias = nn.Parameter(torch.zeros(len(labels), device=plm.device))
        check_head(settings.head, self.head_weight, self.head_bias, labels, hidden=hidden)
        if start is not None:
            self._copy(start, generator)

    @torch.no_grad()
    def _copy(self, start: Bank, generator: torch.Generator) -> None:
        count, apart = self._settings.adapters, self._settings.start_apart
        self._down.copy_(copies(start.down, start.down_bias, count, apart, generator))
        up = copies(start.up, start.up_bias, count, apart, generator)
        self._up.copy_(up.mean(dim=1, keepdim=True) if self._settings.share_up else up)
        if head := start.heads.get(self._settings.head):
            self.head_weight.copy_(head.weight)
            self.head_bias.copy_(head.bias)

    def _parameter(self, blocks: int, count: int, size: int, std: float, generator: torch.Generator) -> nn.Parameter:
        """Random weights, biases of zero."""
        values = std * torch.randn(blocks, count, size, generator=generator)
        values[..., self.form.hidden * self.form.width :] = 0
        return nn.Parameter(values.to(self._plm.device))

    @property
    def parts(self) -> BankParts:
        return BankParts(self._down, self._up.expand(-1, self._settings.adapters, -1))

    def optimizer(self, steps: int) -> tuple[AdamW, LambdaLR]:
        """Args: steps: of the whole training."""
        settings = self._settings
        groups = [
            {"params": [self._down, self._up], "lr": settings.lr_bank, "weight_decay": settings.weight_decay},
            {"params": [self.head_weight, self.head_bias], "lr": settings.lr_head, "weight_decay": 0.0},
        ]
        adam = AdamW(groups, fused=True)
        return adam, LambdaLR(adam, lambda step: share_of_rate(step / steps))

    def check_step(self, loss: float, epoch: int, step: int) -> None:
        """Raises: TuningSettingsInvalid if the loss is no finite number: nothing can be learned any more."""
        if not math.isfinite(loss):
            raise self._diverged(f"the loss of step {step} in epoch {epoch} is {loss}")

    def check_epoch(self, epoch: int, score: Score | None) -> None:
        """Raises: TuningSettingsInvalid if what has been learned gives no finite numbers any more."""
        if score is not None and not math.isfinite(score.loss):
            raise self._diverged(f"the loss on the held-out rows after epoch {epoch} is {score.loss}")
        if not all(bool(each.isfinite().all()) for each in (self._down, self._up, self.head_weight, self.head_bias)):
            raise self._diverged(f"after epoch {epoch} the bank has values that are not finite")

    def _diverged(self, what: str) -> TuningSettingsInvalid:
        names = self._settings.too_high(self._suspects)
        values = ", ".join(f"{name} is {getattr(self._settings, name)}" for name in names)
        options = ", ".join("--" + name.replace("_", "-") for name in names)
        return TuningSettingsInvalid(
            f"{values}, and {what}: try {'a lower one' if len(names) == 1 else 'lower ones'} ({options})"
        )

    @torch.no_grad()
    def bank(self, provenance: str) -> Bank:
        """What has been learned, as profiles choose from it; on CPU a view, which goes on learning."""
        form, (down, up) = self.form, self.parts
        wide = form.hidden * form.width
        shape = (down.shape[0], down.shape[1])
        return Bank(
            down=down[..., :wide].reshape(*shape, form.hidden, form.width).cpu(),
            up=up[..., :wide].reshape(*shape, form.width, form.hidden).cpu(),
            down_bias=down[..., wide:].cpu() if form.down_bias else None,
            up_bias=up[..., wide:].cpu() if form.up_bias else None,
            heads={self._settings.head: SharedHead(self.head_weight.cpu(), self.head_bias.cpu(), self._labels)},
            plm=self._plm.facts.fingerprint,
            activation=form.activation,
            layer_norm=form.layer_norm,
            pooling=self.pooling,
            provenance=provenance,
        )

    def head_logits(self, pooled: Tensor) -> Tensor:
        """``[Q, H]`` → ``[Q, C]`` of the shared head."""
        return nn.functional.linear(pooled, self.head_weight, self.head_bias)


def bank_bytes(settings: BankTrainingSettings, facts: PlmFacts) -> int:
    """Bytes of the adapters that are trained for this model; its head and the file's header come on top."""
    return facts.blocks * settings.adapters * _form(settings, facts.hidden).bank_row * torch.float32.itemsize


def _form(settings: BankTrainingSettings, hidden: int) -> AdapterForm:
    return AdapterForm(
        hidden=hidden,
        width=settings.width,
        activation=settings.activation,
        layer_norm=settings.layer_norm,
        down_bias=settings.biases,
        up_bias=settings.biases,
    )


def share_of_rate(done: float) -> float:
    """Of the peak learning rate, when a share of the steps is done: up over the first twentieth, then down to zero."""
    return min((done + 1e-3) / _WARM_UP, 1.0) * (1 - done)
