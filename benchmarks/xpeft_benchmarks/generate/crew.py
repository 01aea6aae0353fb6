"""The processes that generation is measured in, and what each of them can be asked to do.

Our engine, transformers' padded batches and its continuous batching have a process each, which waits while another is
measured. In one process they would disturb each other: OpenMP keeps workers for every thread that ever computed, and
puts them to sleep between operations once they outnumber the cores; and an engine keeps its device thread. So each
computes as fast as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from ..processes.workers import Worker, WorkerFailed
from .results import GenerateSample, Variant
from .work import GeneratePlan, Load, Work

CONTINUOUS = "transformers continuous"
_ENGINE_MODULE = "xpeft_benchmarks.generate.engine"
_TRANSFORMERS_MODULE = "xpeft_benchmarks.generate.transformers"

Run = Callable[[], GenerateSample]


class Crew:
    """Its processes end with ``stack``.

    Attributes:
        missing: why continuous batching cannot be measured; None if it can, or nobody wants it.
    Raises: WorkerFailed.
    """

    def __init__(
        self, plan: GeneratePlan, work: Work, texts: Sequence[str], stack: ExitStack, *, on_step: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._work = work
        self.missing: str | None = None
        on_step(f"loading {plan.plm} in {plan.dtype} on {plan.device}: the engine")
        self._engine = stack.enter_context(Worker(_ENGINE_MODULE))
        opened = self._open_engine(texts)
        on_step("loading it in transformers")
        self._padded = stack.enter_context(Worker(_TRANSFORMERS_MODULE))
        self._padded.ask(job="open", **opened)
        self._continuous: Worker | None = None
        if plan.continuous:
            self._continuous = stack.enter_context(Worker(_TRANSFORMERS_MODULE))
            self._try_continuous(self._continuous, opened)

    def _open_engine(self, texts: Sequence[str]) -> dict[str, Any]:
        """Returns: what transformers needs to do the same work."""
        names = ("plm", "bank", "device", "dtype", "profiles", "seed", "max_batch_tokens")
        asked = {name: getattr(self._plan, name) for name in names}
        opened = self._engine.ask(
            job="open", texts=texts, prompt_tokens=self._work.prompt, longest=self._work.longest, **asked
        )
        return {**opened, "device": self._plan.device, "dtype": self._plan.dtype}

    def _try_continuous(self, worker: Worker, opened: dict[str, Any]) -> None:
        try:
            worker.ask(job="open", **opened)
            self._sample(worker, "continuous", self._work.at_once())
        except WorkerFailed as error:
            worker.close()
            self._continuous = None
            self.missing = str(error)

    @property
    def padded(self) -> str:
        """The name of padded batches, all requests there at once."""
        return f"transformers padded {self._plan.batch}"

    def at_once(self) -> dict[str, Variant]:
        """Every variant in which all requests are there at the beginning."""
        plan, work = self._plan, self._work
        load = work.at_once()
        one, bare = "engine one profile", "engine bare PLM"
        requests = f"{plan.requests} requests there at once, {plan.new} new tokens each"
        variants = {
            f"engine {plan.profiles} profiles": Variant(
                f"the whole engine, {requests}, {plan.profiles} resident profiles in turn",
                self._engine_run(list(work.owners), load),
                (self.padded, CONTINUOUS, one, bare),
            ),
            one: Variant("the same, one profile for all of them", self._engine_run([0] * plan.requests, load)),
            bare: Variant("the same, without any profile", self._engine_run([None] * plan.requests, load)),
            self.padded: Variant(
                f"transformers' generate, {requests}, left-padded batches of neighbours in length",
                self._padded_run(work.shortest_first, load),
            ),
        }
        if (worker := self._continuous) is not None:
            variants[CONTINUOUS] = Variant(
                f"transformers' continuous batching, its manager kept, its cache made for {requests}",
                lambda: self._sample(worker, "continuous", load),
            )
        return variants

    def staggered(self, seconds: float) -> dict[str, Variant]:
        """Those in which requests come one after the other within so many seconds, each for another answer's length."""
        plan, work = self._plan, self._work
        load = work.staggered(seconds)
        one, padded = "staggered engine one profile", f"staggered {self.padded}"
        shortest, longest = plan.mixed_new
        requests = f"requests that come one after the other, {shortest} to {longest} new tokens"
        return {
            f"staggered engine {plan.profiles} profiles": Variant(
                f"the whole engine, {requests}, {plan.profiles} resident profiles in turn",
                self._engine_run(list(work.owners), load),
                (padded, one),
                seconds,
            ),
            one: Variant(
                "the same, one profile for all of them", self._engine_run([0] * plan.requests, load), (), seconds
            ),
            padded: Variant(
                f"transformers' generate, {requests}: whenever it is free it takes who waits and runs to the longest"
                " answer, each token told as soon as it is there",
                self._padded_run(list(range(plan.requests)), load),
                (),
                seconds,
            ),
        }

    def _engine_run(self, owners: Sequence[int | None], load: Load) -> Run:
        return lambda: self._sample(self._engine, "run", load, owners=owners)

    def _padded_run(self, order: Sequence[int], load: Load) -> Run:
        return lambda: self._sample(self._padded, "padded", load, order=order, batch=self._plan.batch)

    def _sample(self, worker: Worker, job: str, load: Load, **rest: Any) -> GenerateSample:
        """Raises: WorkerFailed."""
        return GenerateSample(tokens=sum(load.new), **worker.ask(job=job, **load._asdict(), **rest))
