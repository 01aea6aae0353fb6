"""What a training step reads and changes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.plm import Plm
from xpeft_server.model.vocabulary_head import VocabularyHead

from .bank_parts import BankParts
from .profile_stack import Learned, ProfileStack
from .row_adam import RowAdam
from .settings import TuningSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainState:
    """Frozen model and bank, the learned parameters of P profiles, and their optimizer.

    Args:
        vocabulary: the model's head, for completions; None where pooled texts are labelled.
        own_head: whether profiles learn heads.
    """

    plm: Plm
    bank: Bank
    settings: TuningSettings
    bank_parts: BankParts
    stack: ProfileStack
    optimizer: RowAdam
    vocabulary: VocabularyHead | None
    own_head: bool

    @classmethod
    def of(
        cls, plm: Plm, bank: Bank, settings: TuningSettings, *, places: int, classes: int, completes: bool
    ) -> TrainState:
        """See `Cohort`."""
        stack = ProfileStack(bank, settings, places=places, classes=classes, device=plm.device)
        own_head = settings.has_own_head and not completes
        rates = [settings.lr_masks, settings.lr_norm, settings.lr_norm, settings.lr_head, settings.lr_head]
        if not stack.form.layer_norm:
            rates[1:3] = 0.0, 0.0
        if not own_head:
            rates[3:] = 0.0, 0.0
        return cls(
            plm=plm,
            bank=bank,
            settings=settings,
            bank_parts=BankParts.of(bank, plm.device),
            stack=stack,
            optimizer=RowAdam(stack.learned, rates),
            vocabulary=plm.vocabulary_head if completes else None,
            own_head=own_head,
        )

    def penalty(self, learned: Learned, weights: Tensor, biases: Tensor) -> Tensor:
        """Of the squared norms of the heads' weights and biases, added up. Args: weights, biases: ``[P']``."""
        of_weights = weights * learned.head_weight.square().sum(dim=(1, 2))
        return (of_weights + biases * learned.head_bias.square().sum(dim=1)).sum() / 2
