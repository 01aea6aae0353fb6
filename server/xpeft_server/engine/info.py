"""Facts of a running engine, for /info."""

from __future__ import annotations

from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder
from xpeft_server.model.graphs.graph_set import GraphFacts

from .engine_limits import EngineLimits
from .requests import EngineInfo


def engine_info(classifier: Classifier, decoder: Decoder | None, limits: EngineLimits) -> EngineInfo:
    plm = classifier.plm
    steps = GraphFacts() if decoder is None else decoder.graphs
    return EngineInfo(
        plm=plm.name,
        model_type=plm.facts.model_type,
        device=str(plm.device),
        dtype=str(plm.dtype).removeprefix("torch."),
        kernels=dict(classifier.kernels),
        generates=decoder is not None,
        context_length=plm.tokenizer.limit,
        slots=classifier.buffers.slots,
        max_batch_tokens=limits.max_batch_tokens,
        queue_limit=limits.queue_limit,
        queue_token_limit=limits.queue_token_limit,
        max_inputs=limits.max_inputs,
        max_total_tokens=0 if decoder is None else decoder.limit,
        max_sequences=limits.max_sequences if decoder is not None else 0,
        kv_tokens=0 if decoder is None else decoder.cache.tokens,
        graphs=classifier.graphs.graphs + steps.graphs,
        graph_tokens=classifier.graphs.tokens,
        graph_step_tokens=steps.tokens,
        graph_bytes=classifier.graphs.bytes + steps.bytes,
    )


def capacity(info: EngineInfo) -> dict[str, int]:
    """What there is room for, by the names in the metrics; room for keys and values is a metric of its own."""
    return {
        "queue_texts": info.queue_limit,
        "queue_tokens": info.queue_token_limit,
        "slots": info.slots,
        "sequences": info.max_sequences,
    }
