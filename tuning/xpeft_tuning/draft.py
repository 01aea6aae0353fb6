"""A profile while it is being tuned: logits where it will have masks, and its numbers in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xpeft_kernels import AdapterForm
from xpeft_profiles import Profile
from xpeft_server.model.bank import Bank

from .linear_head import LinearHead
from .masks import hard_weights, soft_weights, top_k
from .settings import TuningSettings

LOGIT_SPREAD = 0.01
"""Standard deviation of the first logits: enough that a hard choice exists, little against one step's change."""


class ProfileDraft(nn.Module):
    """Everything of a profile that is learned.

    Args:
        bank: decides the shapes; frozen.
        head: where an own head starts; None where ``settings.shared_head`` names one.
        labels: C labels of that head.

    Parameters: ``logits`` ``[2, L, N]`` (masks a and b); ``ln_weight``, ``ln_bias`` ``[L, R]``, the identity at the
    start; ``head_weight`` ``[C, H]``, ``head_bias`` ``[C]``. What is fixed (a shared head, an LN affine over a bank
    without LN_R) has ``requires_grad`` false.
    """

    def __init__(
        self,
        bank: Bank,
        form: AdapterForm,
        settings: TuningSettings,
        *,
        labels: tuple[str, ...],
        head: LinearHead | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._bank_fingerprint = bank.fingerprint
        self._form = form
        self._settings = settings
        self._labels = labels
        self._k = settings.chosen(bank.adapters)
        # Drawn on the CPU, so that the device makes no difference.
        generator = torch.Generator().manual_seed(settings.seed)
        logits = LOGIT_SPREAD * torch.randn(2, bank.blocks, bank.adapters, generator=generator)
        affine = (bank.blocks, bank.width)
        self.logits = nn.Parameter(logits.to(device))
        self.ln_weight = nn.Parameter(torch.ones(affine, device=device), form.layer_norm)
        self.ln_bias = nn.Parameter(torch.zeros(affine, device=device), form.layer_norm)
        start = bank.heads[settings.shared_head] if settings.shared_head is not None else head
        if start is None:
            raise ValueError("an own head has to start somewhere")
        self.head_weight = nn.Parameter(start.weight.float().to(device), head is not None)
        self.head_bias = nn.Parameter(start.bias.float().to(device), head is not None)

    def weights(self) -> Tensor:
        """``[2, L, N]`` mask weights, rows sum to 1, differentiable in the logits."""
        if self._settings.kind == "hard":
            return hard_weights(self.logits, self._k)
        return soft_weights(self.logits)

    def slot_rows(self, bank_rows: Tensor) -> Tensor:
        """The materialised adapter of every block, as one slot.

        Semantics: Â_l = Σ_n a[l,n] A_l,n and B̂_l = Σ_n b[l,n] B_l,n, then LN_R's affine.

        Args: bank_rows: ``[L, N, D]`` of the form.
        Returns: ``[L, 1, D']``, differentiable in every parameter but the head.
        """
        down, up = self.weights().unsqueeze(2)
        split = self._form.split
        parts = [torch.bmm(down, bank_rows[..., :split]), torch.bmm(up, bank_rows[..., split:])]
        if self._form.layer_norm:
            parts += [self.ln_weight.unsqueeze(1), self.ln_bias.unsqueeze(1)]
        return torch.cat(parts, dim=2)

    def head(self, pooled: Tensor) -> Tensor:
        """``[Q, H]`` → logits ``[Q, C]``."""
        return nn.functional.linear(pooled, self.head_weight, self.head_bias)

    @torch.no_grad()
    def profile(self) -> Profile:
        """What would be served if tuning ended now: hard choices, numbers in float16."""
        settings = self._settings
        masks = top_k(self.logits, self._k) if settings.kind == "hard" else soft_weights(self.logits)
        mask_a, mask_b = masks.cpu().numpy()
        own = settings.shared_head is None
        return Profile(
            bank=self._bank_fingerprint,
            mask_a=mask_a,
            mask_b=mask_b,
            ln_weight=self.ln_weight.cpu().numpy() if self._form.layer_norm else None,
            ln_bias=self.ln_bias.cpu().numpy() if self._form.layer_norm else None,
            head_weight=self.head_weight.cpu().numpy() if own else None,
            head_bias=self.head_bias.cpu().numpy() if own else None,
            labels=self._labels if own else None,
            shared_head=settings.shared_head,
            description=settings.description,
        )
