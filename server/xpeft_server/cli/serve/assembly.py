"""Builds the engine from the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import torch

from xpeft_kernels import AdapterForm
from xpeft_profiles import ProfileStore
from xpeft_server.engine.device.thread import device_executor
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.engine_limits import EngineLimits
from xpeft_server.engine.metrics import Metrics
from xpeft_server.model.banks.source import check_bank_source, open_bank
from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder, kv_shape
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.model.prepacked import prepack
from xpeft_server.model.slots import adapter_form
from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_server.tenant_limits import ONE_TENANT, LimitsOfTenants

from .profiler_assembly import build_profiler

logger = logging.getLogger(__name__)

_LARGEST_STEP: Final = 512
"""Most tokens of a generation step that is a CUDA graph: larger steps are mostly prefill, and launches cost little."""


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises: SettingsInvalid if cuda was asked for and is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsInvalid("device = 'cuda' cannot be used: torch sees no CUDA device (--device or XPEFT_DEVICE)")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU and float32 on CPU, where answers are then the same bits in every batch."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def choose_batch_tokens(asked: int | str, device: torch.device) -> int:
    """``auto``: beyond 1024 tokens a CPU gains no throughput, and every batch takes longer."""
    if isinstance(asked, int):
        return asked
    return 8192 if device.type == "cuda" else 1024


def choose_graph_tokens(asked: int | str, most: int) -> int:
    """``auto``: ``most``, so that only a single text longer than a batch runs without a graph."""
    return min(asked, most) if isinstance(asked, int) else most


def choose_slots(asked: int | str, form: AdapterForm, plm: Plm, *, adapters: int) -> int:
    """``auto``: what fits into 1 GiB on CPU, or into half of what the bank will leave free on a GPU; at least 32.

    Args:
        adapters: N of the bank, which is not on the device yet.
    """
    if isinstance(asked, int):
        return asked
    column_bytes = plm.facts.blocks * plm.dtype.itemsize
    if plm.device.type == "cuda":
        left = torch.cuda.mem_get_info(plm.device)[0] - adapters * form.bank_row * column_bytes
        budget, most = left // 2, 16384
    else:
        budget, most = 1 << 30, 4096
    return max(32, min(most, budget // (form.slot_row * column_bytes)))


def choose_kv_tokens(asked: int | str, plm: Plm) -> int:
    """``auto``: what fits into 1 GiB on CPU, or into three quarters of a GPU's memory that slots have left free."""
    if isinstance(asked, int):
        return asked
    budget = torch.cuda.mem_get_info(plm.device)[0] * 3 // 4 if plm.device.type == "cuda" else 1 << 30
    return budget // kv_shape(plm).token_bytes


def build_engine(
    settings: Settings,
    store: ProfileStore,
    metrics: Metrics,
    *,
    tenants: LimitsOfTenants = ONE_TENANT,
    on_death: Callable[[], None] = lambda: None,
) -> Engine:
    """Load PLM and bank in the thread that will own the device, and make the engine, not yet started.

    Raises: SettingsInvalid, ModelError or BankError, each with a message for people.
    """
    device = device_executor()
    classifier = device.submit(load_classifier, settings).result()
    limits = EngineLimits(
        max_batch_tokens=choose_batch_tokens(settings.max_batch_tokens, classifier.plm.device),
        queue_limit=settings.queue_limit,
        queue_token_limit=settings.queue_token_limit,
        queue_seconds=settings.queue_seconds,
        max_inputs=settings.max_inputs,
        max_sequences=settings.max_sequences,
        host_cache_bytes=settings.host_cache_bytes,
        prefix_caching=not settings.disable_prefix_caching,
    )
    return Engine(
        classifier,
        store,
        decoder=device.submit(load_decoder, settings, classifier).result(),
        limits=limits,
        tenants=tenants,
        metrics=metrics,
        device=device,
        profiler=build_profiler(settings),
        on_death=on_death,
    )


def load_classifier(settings: Settings) -> Classifier:
    """PLM, bank and slots as the settings say. Raises: as `build_engine`."""
    device = choose_device(settings.device)
    check_bank_source(settings.bank)
    plm = load_plm(settings.plm, device=device, dtype=choose_dtype(settings.dtype, device))
    prepack(plm)
    bank = open_bank(settings.bank, plm.facts)
    slots = choose_slots(settings.slots, adapter_form(bank), plm, adapters=bank.adapters)
    widest_head = settings.max_profile_bytes // (2 * (plm.facts.hidden + 1))
    graph_tokens = choose_graph_tokens(settings.graph_tokens, choose_batch_tokens(settings.max_batch_tokens, device))
    head_rows = max(2 * widest_head, 16 * slots)
    return Classifier(plm, bank, slots=slots, head_rows=head_rows, graph_tokens=graph_tokens)


def load_decoder(settings: Settings, classifier: Classifier) -> Decoder | None:
    """What generates, over the classifier's PLM and slots; None for encoders and for decoders without a head."""
    plm = classifier.plm
    if plm.vocabulary_head is None:
        return None
    decoder = Decoder(
        plm,
        classifier.buffers,
        kv_tokens=choose_kv_tokens(settings.kv_tokens, plm),
        graph_tokens=choose_graph_tokens(settings.graph_tokens, min(settings.max_sequences, _LARGEST_STEP)),
    )
    if decoder.limit < plm.tokenizer.limit:
        logger.warning(
            "kv_tokens = %d is room for texts of %d tokens, prompt and answer together, where the model takes %d "
            "(--kv-tokens or XPEFT_KV_TOKENS)",
            decoder.cache.tokens,
            decoder.limit,
            plm.tokenizer.limit,
        )
    return decoder
