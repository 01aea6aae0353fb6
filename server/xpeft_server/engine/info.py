"""Facts of a running engine, for /info."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xpeft_kernels import chosen_implementations
from xpeft_server.model.classifier import Classifier

from .requests import EngineInfo

if TYPE_CHECKING:
    from .engine import EngineLimits


def engine_info(classifier: Classifier, limits: EngineLimits) -> EngineInfo:
    plm = classifier.plm
    return EngineInfo(
        plm=plm.name,
        model_type=plm.facts.model_type,
        device=str(plm.device),
        dtype=str(plm.dtype).removeprefix("torch."),
        kernels=chosen_implementations(plm.device.type),
        generates=False,
        context_length=plm.tokenizer.limit,
        slots=classifier.buffers.slots,
        max_batch_tokens=limits.max_batch_tokens,
        queue_limit=limits.queue_limit,
        queue_token_limit=limits.queue_token_limit,
        max_inputs=limits.max_inputs,
    )
