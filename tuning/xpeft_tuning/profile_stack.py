"""Parameters of P profiles in tuning: mask logits, LN affines and heads, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xpeft_kernels import AdapterForm
from xpeft_profiles import Profile, ProfileInvalid
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.slots import adapter_form

from .bank_parts import BankParts
from .errors import Unservable
from .linear_head import LinearHead
from .masks import hard_weights, soft_weights, top_k
from .settings import TuningSettings


class Learned(NamedTuple):
    """What is learned of P profiles (or gradients of it, or averages), each ``[P, …]`` float32.

    Args:
        logits: ``[P, 2, L, N]``, of masks a and b.
        ln_weight, ln_bias: ``[P, L, R]``, LN_R's affine.
        head_weight: ``[P, C, H]``, how far a head is from what it is drawn to; head_bias: ``[P, C]``.
    """

    logits: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    head_weight: Tensor
    head_bias: Tensor

    def at(self, places: Tensor) -> Learned:
        """Copies of some places' rows, differentiable."""
        return Learned(*(each.index_select(0, places) for each in self))


class ProfileStack:
    """P places, each for the learned parameters of one profile.

    Args:
        bank: decides the shapes.
        settings: of all profiles here.
        places: P.
        classes: C, the widest head; what a narrower one lacks has logit minus infinity.
    """

    def __init__(
        self, bank: Bank, settings: TuningSettings, *, places: int, classes: int, device: torch.device
    ) -> None:
        self.form: AdapterForm = adapter_form(bank)
        self._bank = bank
        self._settings = settings
        self._k = settings.chosen(bank.adapters)
        affine = (places, bank.blocks, bank.width)
        self.learned = Learned(
            logits=torch.zeros(places, 2, bank.blocks, bank.adapters, device=device),
            ln_weight=torch.ones(affine, device=device),
            ln_bias=torch.zeros(affine, device=device),
            head_weight=torch.zeros(places, classes, bank.hidden, device=device),
            head_bias=torch.zeros(places, classes, device=device),
        )
        self._centre_weight = torch.zeros_like(self.learned.head_weight)
        self._centre_bias = torch.zeros_like(self.learned.head_bias)

    def begin(self, place: int, *, seed: int) -> None:
        """A fresh profile: random logits, the identity for an affine, and no head."""
        # Drawn on the CPU, so that the device makes no difference.
        generator = torch.Generator().manual_seed(seed)
        self.learned.logits[place] = self._settings.mask_spread * torch.randn(
            self.learned.logits.shape[1:], generator=generator
        )
        self.learned.ln_weight[place] = 1
        for each in self.learned[2:]:
            each[place] = 0

    def begin_head(self, place: int, drawn_to: LinearHead, start: LinearHead) -> None:
        """The head of a profile, of C' ≤ C labels: what a penalty draws it to, and where it starts."""
        own = start.weight.shape[0]
        self._centre_weight[place] = 0
        self._centre_bias[place] = -torch.inf
        self._centre_weight[place, :own] = drawn_to.weight
        self._centre_bias[place, :own] = drawn_to.bias
        # A bank's head is on the CPU, whatever the device of the stack.
        weight, bias = start.weight.to(self._centre_weight), start.bias.to(self._centre_bias)
        self.learned.head_weight[place, :own] = weight - self._centre_weight[place, :own]
        self.learned.head_bias[place, :own] = bias - self._centre_bias[place, :own]

    def leaves(self, places: Tensor) -> Learned:
        """Copies of some places' rows, as leaves of autograd."""
        return Learned(*(each.requires_grad_() for each in self.learned.at(places)))

    def weights(self, logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """``[…, N]`` mask weights, rows sum to 1, differentiable in the logits."""
        if self._settings.kind == "hard":
            return hard_weights(logits, self._k, temperature=temperature)
        return soft_weights(logits, temperature=temperature)

    def adapters(self, learned: Learned, bank: BankParts, temperature: Tensor, noise: Tensor | None = None) -> Tensor:
        """``[L, P', D']`` slots of P' profiles as training sees them.

        Args:
            temperature: ``[P']``.
            noise: ``[P', 2, L, N]`` standard Gumbel noise, scaled and added to the logits.
        """
        logits = learned.logits if noise is None else learned.logits + self._settings.gumbel * noise
        return self.slot_rows(self.weights(logits, temperature.view(-1, 1, 1, 1)), learned, bank)

    def slot_rows(self, weights: Tensor, learned: Learned, bank: BankParts) -> Tensor:
        """The materialised adapters of P' profiles, a slot each.

        Semantics: Â_l = Σ_n a[l,n] A_l,n and B̂_l = Σ_n b[l,n] B_l,n, then LN_R's affine.

        Args: weights: ``[P', 2, L, N]``; learned: of P' profiles, whose affine it takes.
        Returns: ``[L, P', D']``, differentiable in everything.
        """
        down, up = weights.permute(1, 2, 0, 3)
        parts = [torch.bmm(down, bank.down), torch.bmm(up, bank.up)]
        if self.form.layer_norm:
            parts += [learned.ln_weight.transpose(0, 1), learned.ln_bias.transpose(0, 1)]
        return torch.cat(parts, dim=2)

    def head(self, places: Tensor, learned: Learned) -> tuple[Tensor, Tensor]:
        """Weight ``[P', C, H]`` and bias ``[P', C]`` of some places' heads, differentiable in ``learned``."""
        return self._centre_weight[places] + learned.head_weight, self._centre_bias[places] + learned.head_bias

    @torch.no_grad()
    def fit_float16(self, places: Sequence[int]) -> list[bool]:
        """For each place, whether a profile could be made of its parameters.

        One check of all places, which spares making profiles that are not needed yet.
        """
        here = torch.tensor(places, dtype=torch.int64, device=self.learned.logits.device)
        learned = self.learned.at(here)
        weight, bias = self.head(here, learned)
        bias = bias.masked_fill(self._centre_bias[here].isneginf(), 0)  # labels of wider heads
        largest = torch.finfo(torch.float16).max
        numbers = (*learned[:3], weight, bias)
        return torch.stack([(each.abs() <= largest).flatten(1).all(dim=1) for each in numbers]).all(dim=0).tolist()

    @torch.no_grad()
    def profile(self, place: int, labels: tuple[str, ...], temperature: float) -> Profile:
        """What would be served if tuning ended now: hard choices, numbers in float16.

        Raises: Unservable if a number is none, or beyond float16.
        """
        try:
            return self._profile(place, labels, temperature)
        except ProfileInvalid as error:
            raise Unservable(f"what was learned makes no profile: {error}") from error

    def _profile(self, place: int, labels: tuple[str, ...], temperature: float) -> Profile:
        settings, learned = self._settings, self.learned
        logits = learned.logits[place]
        hard = settings.kind == "hard"
        masks = top_k(logits, self._k) if hard else soft_weights(logits, temperature=temperature)
        mask_a, mask_b = masks.cpu().numpy()
        own = settings.has_own_head and len(labels) > 0  # completions have no labels
        weight = self._centre_weight[place, : len(labels)] + learned.head_weight[place, : len(labels)]
        bias = self._centre_bias[place, : len(labels)] + learned.head_bias[place, : len(labels)]
        return Profile(
            bank=self._bank.fingerprint,
            mask_a=mask_a,
            mask_b=mask_b,
            ln_weight=learned.ln_weight[place].cpu().numpy() if self.form.layer_norm else None,
            ln_bias=learned.ln_bias[place].cpu().numpy() if self.form.layer_norm else None,
            head_weight=weight.cpu().numpy() if own else None,
            head_bias=bias.cpu().numpy() if own else None,
            labels=labels if own else None,
            shared_head=None if own else settings.shared_head,
            description=settings.description,
        )
