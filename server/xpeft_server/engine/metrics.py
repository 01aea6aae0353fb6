"""Every metric of the server, in a registry of its own. Prefix ``xpeft_``, base units."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from xpeft_server.version import VERSION

from .profile_requests import ProfileRequests
from .profiles.damaged import DamagedProfiles
from .tuning_states import TuningStates

OUTCOMES: Final = ("ok", "client_error", "overloaded", "cancelled", "server_error")
UPLOAD_OUTCOMES: Final = ("created", "replaced", "identical", "refused", "failed")
SPAN_OUTCOMES: Final = ("exported", "lost")
TUNING_OUTCOMES: Final = ("succeeded", "failed", "cancelled")
# The first three are overload; the others are limits of a tenant.
REFUSALS: Final = (
    "queue",
    "queue_seconds",
    "queue_share",
    "concurrency",
    "request_rate",
    "token_rate",
    "profiles",
    "tuning_jobs",
)
# Why the server ended a connection: no room; evicted for another; no request in time; no complete head in time;
# the client did not read in time.
CONNECTION_ENDS: Final = ("refused", "room", "idle", "late", "unread")
CAPACITIES: Final = ("queue_texts", "queue_tokens", "slots", "sequences")
TIERS: Final = ("host", "device")
# Where a profile came from when it was made resident: the host's records, or a store of this scheme.
LOAD_SOURCES: Final = ("host", "memory", "sqlite", "redis")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, *_SECONDS[:13])
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Metrics:
    """The families of one server. Children of fixed labels exist from the start, at zero.

    The engine observes what happens to batches, slots and the store; the API observes requests and uploads.

    Args:
        top_profiles: how many profiles have a series of their own in ``profile_requests_total``.
    """

    def __init__(self, *, top_profiles: int = 100) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests answered.", ("route", "outcome"))
        self._request_duration = self._histogram(
            "request_duration_seconds", "From the request's headers to its answer.", _SECONDS, ("route",)
        )
        self._answers: dict[tuple[str, str], Counter] = {}
        self._durations: dict[str, Histogram] = {}
        refusals = self._counter("refusals", "Requests answered with 429, by the limit they met.", ("reason",))
        self.refusals = {reason: refusals.labels(reason) for reason in REFUSALS}
        self._define_connections()
        self._define_tokens()
        self._define_profiles(top_profiles)
        self._define_batches()
        self._define_generation()
        self._define_tuning()
        self._define_facts()
        spans = self._counter("trace_spans", "Spans of sampled requests.", ("outcome",))
        self.trace_spans = {outcome: spans.labels(outcome) for outcome in SPAN_OUTCOMES}
        ProcessCollector(registry=self._registry)

    def expect_routes(self, routes: Iterable[str]) -> None:
        """Create the series of these path templates, at zero; only they can be observed."""
        for route in routes:
            self._durations[route] = self._request_duration.labels(route)
            for outcome in OUTCOMES:
                self._answers[route, outcome] = self._requests.labels(route, outcome)

    def observe_request(self, route: str, outcome: str, seconds: float) -> None:
        self.count_request(route, outcome)
        self._durations[route].observe(seconds)

    def count_request(self, route: str, outcome: str) -> None:
        """Count a request that has no duration."""
        self._answers[route, outcome].inc()

    def set_kernels(self, kernels: Mapping[str, str]) -> None:
        """Show which implementation was chosen for each operator."""
        self._kernel_info.clear()
        for operator, implementation in kernels.items():
            self._kernel_info.labels(operator, implementation).set(1)

    def set_capacity(self, room: Mapping[str, int]) -> None:
        """Show how much there is room for; `CAPACITIES` has the names."""
        for name in CAPACITIES:
            self._capacity[name].set(room[name])

    async def page(self) -> bytes:
        """What /metrics shows: this process's, where no other belongs to the server."""
        return self.render()

    def render(self) -> bytes:
        """All families in Prometheus' text format, version 0.0.4."""
        return generate_latest(_WithoutCreated(self._registry))

    def families(self) -> list[Metric]:
        """What `render` writes."""
        return list(_WithoutCreated(self._registry).collect())

    def _define_connections(self) -> None:
        self.connections = self._gauge("connections", "Open connections.")
        self.connections_limit = self._gauge("connections_limit", "Maximum open connections.")
        ends = self._counter("connection_ends", "Connections that the server ended or refused, by reason.", ("reason",))
        self.connection_ends = {reason: ends.labels(reason) for reason in CONNECTION_ENDS}

    def _define_tokens(self) -> None:
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, including special tokens.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From the request to its first generated token.", _SECONDS
        )

    def _define_profiles(self, top_profiles: int) -> None:
        self.cache_hits = self._by_tier("profile_cache_hits", "Profiles found resident in the tier.")
        self.cache_misses = self._by_tier("profile_cache_misses", "Profiles not found in the tier.")
        self.cache_evictions = self._by_tier("profile_cache_evictions", "Profiles dropped to make room.")
        self.cache_invalidations = self._by_tier(
            "profile_cache_invalidations", "Profiles dropped because the store has another version."
        )
        uploads = self._counter("profile_uploads", "Uploads of profiles.", ("outcome",))
        self.profile_uploads = {outcome: uploads.labels(outcome) for outcome in UPLOAD_OUTCOMES}
        self.damaged_profiles = DamagedProfiles(
            self._counter("profile_damaged", "Requested profiles whose record in the store is damaged.")
        )
        self.wrong_bank_profiles = self._counter(
            "profile_wrong_bank", "Profiles asked for that were made for another bank than the server's."
        )
        resident = self._gauge("profiles_resident", "Profiles held in the tier.", ("tier",))
        self.profiles_resident = {tier: resident.labels(tier) for tier in TIERS}
        load = self._histogram("profile_load_seconds", "Time to make a profile resident.", _SHORT_SECONDS, ("source",))
        self.profile_load = {source: load.labels(source) for source in LOAD_SOURCES}
        self.profile_requests = ProfileRequests(
            "xpeft_profile_requests", "Requests answered, by profile; rarer profiles as other.", top=top_profiles
        )
        self._registry.register(self.profile_requests)

    def _define_batches(self) -> None:
        self.request_queue_time = self._histogram(
            "request_queue_time_seconds", "From acceptance to the start of the batch.", _SHORT_SECONDS
        )
        self.request_inference_time = self._histogram(
            "request_inference_time_seconds", "Time of the batches that computed the request.", _SHORT_SECONDS
        )
        self.batch_size = self._histogram("batch_size", "Texts in a batch.", _COUNTS)
        self.batch_tokens = self._histogram("batch_tokens", "Packed tokens in a batch.", _TOKENS)
        self.batch_profiles = self._histogram("batch_profiles", "Different profiles in a batch.", _COUNTS)
        self.requests_running = self._gauge(
            "requests_running", "Requests on the device: in its batch, or being generated."
        )
        self.requests_waiting = self._gauge("requests_waiting", "Requests in the queues.")
        capacity = self._gauge("capacity", "Capacities set at startup.", ("resource",))
        self._capacity = {name: capacity.labels(name) for name in CAPACITIES}

    def _define_generation(self) -> None:
        self.preemptions = self._counter("preemptions", "Sequences that gave up their KV cache and started again.")
        kv_tokens = self._gauge("kv_tokens", "Room in the KV cache, in tokens.", ("state",))
        self.kv_tokens = {state: kv_tokens.labels(state) for state in ("used", "cached", "free")}
        self.prefix_cache_queries = self._counter("prefix_cache_queries", "Prompt tokens of admitted sequences.")
        self.prefix_cache_hits = self._counter(
            "prefix_cache_hits", "Those of them whose keys and values were taken from an earlier prompt's."
        )

    def _define_tuning(self) -> None:
        jobs = self._counter("tuning_jobs", "Tuning jobs that ended.", ("outcome",))
        self.tuning_outcomes = {outcome: jobs.labels(outcome) for outcome in TUNING_OUTCOMES}
        self.tuning_jobs = TuningStates("xpeft_tuning_jobs_unfinished", "Tuning jobs waiting or running.")
        self._registry.register(self.tuning_jobs)

    def _define_facts(self) -> None:
        self.store_up = self._gauge("store_up", "1 while the profile store answers, else 0.")
        self.unverified_answers = self._counter(
            "unverified_answers", "Answers of resident profiles while the store could not be asked for their version."
        )
        build = self._gauge("build_info", "What is running; always 1.", ("version", "python"))
        build.labels(VERSION, platform.python_version()).set(1)
        self._kernel_info = self._gauge(
            "kernel_info", "Implementation chosen for each operator; always 1.", ("operator", "implementation")
        )

    def _by_tier(self, name: str, text: str) -> dict[str, Counter]:
        family = self._counter(name, text, ("tier",))
        return {tier: family.labels(tier) for tier in TIERS}

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter("xpeft_" + name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge("xpeft_" + name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram("xpeft_" + name, text, labels, registry=self._registry, buckets=buckets)


class _WithoutCreated(Collector):
    """The registry without the ``_created`` time of every series, which the text format shows as gauges."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            created = family.name + "_created"
            family.samples = [sample for sample in family.samples if sample.name != created]
            yield family
