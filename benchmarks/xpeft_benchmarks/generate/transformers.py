"""The process of transformers: its ``generate`` in padded batches, or its continuous batching."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from ..processes.workers import answer_jobs
from .timeline import AnswerWrong, Timeline


class ContinuousFailed(Exception):
    """transformers' continuous batching did not answer; the message has its reason."""


class TransformersWorker:
    """Jobs: ``open`` once (model, prompts), then ``padded`` or ``continuous``.

    A process does one of the two: continuous batching computes in a thread of its own, and OpenMP's workers slow each
    other down where two threads have ever computed. The model is loaded in a thread that ends, which counts as none.
    """

    def __init__(self) -> None:
        self._model: Any = None
        self._prompts: list[list[int]] = []
        self._padding = 0

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        match job["job"]:
            case "open":
                return self._open(job)
            case "padded":
                return self._padded(job["order"], job["batch"], job["new"], job["at"])
            case _:
                return self._continuous(job["new"], job["at"])

    def _open(self, job: dict[str, Any]) -> dict[str, Any]:
        with ThreadPoolExecutor(1) as thread:
            self._model = thread.submit(_load, job["folder"], job["device"], job["dtype"]).result()
        self._padding = int(self._model.config.pad_token_id or 0)
        self._prompts = job["prompts"]
        return {}

    @torch.inference_mode()
    def _padded(self, order: list[int], batch: int, new: list[int], at: list[float]) -> dict[str, Any]:
        """Whenever the model is free it takes those who wait, ``batch`` at the most; ``order`` is their queue."""
        waiting = deque(order)
        batches = 0
        line = Timeline(at, new)
        while waiting:
            if (seconds := line.until(waiting[0])) > 0:
                time.sleep(seconds)
            taken = [waiting.popleft()]
            while waiting and len(taken) < batch and line.until(waiting[0]) <= 0:
                taken.append(waiting.popleft())
            self._generate(taken, new, line)
            batches += 1
        return {**line.measured(), "batches": batches}

    def _generate(self, requests: list[int], new: list[int], line: Timeline) -> None:
        """One batch, which runs to its longest answer; each request has its tokens when they are streamed."""
        prompts = [self._prompts[request] for request in requests]
        width = max(map(len, prompts))
        ids = [[self._padding] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        steps = _StepTimes()
        out = self._model.generate(
            input_ids=torch.tensor(ids, device=self._model.device),
            attention_mask=torch.tensor(mask, device=self._model.device),
            generation_config=_greedy(max(new[request] for request in requests), self._padding),
            streamer=steps,
        )
        for request in requests:
            line.started(request, steps.clocks[0])
            line.ended(request, min(new[request], out.shape[1] - width), steps.clocks[new[request] - 1])

    def _continuous(self, new: list[int], at: list[float]) -> dict[str, Any]:
        """All at once. The manager is kept from job to job: its start is part of none.

        Raises: ContinuousFailed.
        """
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for answers of this process
            try:
                return self._managed(new, at)
            except Exception as error:
                raise ContinuousFailed(f"{type(error).__name__}: {error}") from error

    def _managed(self, new: list[int], at: list[float]) -> dict[str, Any]:
        config = _greedy(max(new), self._padding)
        config.eos_token_id = -1
        with self._model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=self._room(new), persistent_manager=True
        ) as manager:
            line = Timeline(at, new)
            names = manager.add_requests(self._prompts, max_new_tokens=max(new), record_timestamps=True)
            requests = {name: request for request, name in enumerate(names)}
            while requests:
                result = manager.get_result(timeout=1)
                if result is None:
                    if not manager.is_running():
                        raise ContinuousFailed("its thread ended before all requests were answered")
                    continue
                if result.error is not None:
                    raise ContinuousFailed(result.error)
                request = requests.pop(result.request_id)
                line.started(request, result.timestamps[0])
                line.ended(request, len(result.generated_tokens), result.timestamps[-1])
        return line.measured()

    def _room(self, new: list[int]) -> Any:
        """Its own settings, but for sizes: every prompt fits into one step, and all sequences into the cache twice.

        Left to itself it takes 10 GB of 24 for a model of 50 MB, and is no faster for it.
        """
        config: Any = ContinuousBatchingConfig()
        page = config.page_size if hasattr(config, "page_size") else config.block_size  # its name up to 5.18
        lengths = [len(prompt) + tokens for prompt, tokens in zip(self._prompts, new, strict=True)]
        config.num_blocks = 2 * sum(-(-length // page) for length in lengths)
        config.max_batch_tokens = sum(map(len, self._prompts))
        config.max_requests_per_batch = len(lengths)
        return config


class _StepTimes(BaseStreamer):
    """``clocks``: when each step's tokens were there, as `time.perf_counter` tells."""

    def __init__(self) -> None:
        self.clocks: list[float] = []
        self._prompt_came = False

    def put(self, value: torch.Tensor) -> None:
        """The prompt comes first, then the tokens of each step."""
        if self._prompt_came:
            self.clocks.append(time.perf_counter())
        self._prompt_came = True

    def end(self) -> None:
        """Nothing is held back."""


def _load(folder: str, device: str, dtype: str) -> Any:
    """As transformers loads it, greedy, without a token that ends a text."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model.requires_grad_(False).train(False).to(torch.device(device))
    model.config.eos_token_id = None
    model.generation_config = GenerationConfig(do_sample=False)  # type: ignore[no-untyped-call]
    return model


def _greedy(new: int, padding: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=padding)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    answer_jobs(TransformersWorker(), (AnswerWrong, ContinuousFailed))
