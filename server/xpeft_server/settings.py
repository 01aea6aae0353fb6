"""The one frozen settings object: what ``xpeft serve`` can be told, on the command line or as ``XPEFT_…``."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# In a URL: from the colon after the user's name to the last "@" before the path, or a parameter.
_PASSWORD = re.compile(r"(?<=password=)[^&]+|(?<=:)[^/]+(?=@)")


BatchTokens = Annotated[int, Field(ge=16, le=1 << 24)]
KvTokens = Annotated[int, Field(ge=64, le=1 << 32)]
GraphTokens = Annotated[int, Field(ge=0, le=1 << 24)]
SlotCount = Annotated[int, Field(ge=1, le=1 << 20)]
ConnectionCount = Annotated[int, Field(ge=1, le=1 << 20)]


class SettingsInvalid(Exception):
    """A setting cannot be used; the message names the key and the value."""


class Settings(BaseModel):
    """What the server was told, checked as a whole. Sizes in bytes, times in seconds, lengths in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    plm: str = Field(
        default="minilm",
        min_length=1,
        description="frozen language model: a path, a hub id, or minilm, the model of the demo package",
    )
    bank: str = Field(
        default="random:N=100,R=48,seed=0,std=0.1",
        min_length=1,
        description="adapter bank: a file, or random:N=…,R=…,seed=…,std=…",
    )
    store: str = Field(
        default="sqlite:///xpeft.db",
        min_length=1,
        description="profile store: sqlite:///FILE (sqlite:////FILE is absolute), redis://… or memory://",
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="address to listen on; any but loopback needs --api-keys",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device that runs the model: auto, cpu or cuda"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="number format of the model: float32, bfloat16, or auto (float32 on a CPU, bfloat16 on a GPU)",
    )
    max_batch_tokens: BatchTokens | Literal["auto"] = Field(
        default="auto", description="maximum tokens in one forward pass; auto is 1024 on a CPU and 8192 on a GPU"
    )
    graph_tokens: GraphTokens | Literal["auto"] = Field(
        default="auto",
        description="on a GPU, batches of up to this many tokens run as CUDA graphs, which are captured at startup;"
        " auto is max-batch-tokens, 0 turns graphs off",
    )
    queue_limit: int = Field(
        default=1024, ge=1, le=1 << 24, description="maximum texts waiting or running; requests beyond it get 429"
    )
    queue_token_limit: int = Field(
        default=262_144, ge=16, le=1 << 30, description="maximum tokens waiting; requests beyond it get 429"
    )
    queue_seconds: float = Field(
        default=1.0,
        gt=0,
        le=3600,
        description="maximum backlog of classification work, in seconds at the device's recent speed; requests"
        " beyond it get 429",
    )
    slots: SlotCount | Literal["auto"] = Field(
        default="auto",
        description="number of profiles whose adapters are kept ready on the device; auto is what fits into 1 GiB on"
        " a CPU (at most 4096) or into half of a GPU's free memory (at most 16384)",
    )
    kv_tokens: KvTokens | Literal["auto"] = Field(
        default="auto",
        description="size of the KV cache for generation, in tokens; auto is what fits into 1 GiB on a CPU or into"
        " three quarters of a GPU's free memory; a prompt and its answer together are limited to the"
        " largest power of two within it",
    )
    disable_prefix_caching: bool = Field(
        default=False,
        description="compute every prompt from its start; without it, a prompt's keys and values stay in unused room of"
        " the KV cache, for prompts of the same tenant and profile that begin with the same 64 tokens or more",
    )
    max_sequences: int = Field(
        default=256, ge=1, le=1 << 16, description="maximum texts generated at once; others wait"
    )
    host_cache_bytes: int = Field(
        default=256 << 20, ge=0, description="host memory for the compact records of profiles, in bytes"
    )
    api_keys: Path | None = Field(
        default=None,
        description="file of API keys (see xpeft keys); without it, every client on this machine is let in",
    )
    tenant_limits: Path | None = Field(
        default=None,
        description="file of each tenant's limits, read again when it changes; without it, tenants share fairly",
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with the server's certificate and its chain; turns https on"
    )
    tls_key: Path | None = Field(default=None, description="PEM file with the certificate's private key, unencrypted")
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM file of certificate authorities; every client must present a certificate signed by one of"
        " them",
    )
    audit_log: Path | None = Field(
        default=None,
        description="file that gets a JSON line for every write and every refused key; without it, the lines go to"
        " the log at level info",
    )
    metrics_open: bool = Field(default=False, description="serve /metrics without an operator's key")
    metrics_top_profiles: int = Field(
        default=100,
        ge=0,
        le=10_000,
        description="number of profiles with a metric series of their own; all others are counted as other",
    )
    max_body_bytes: int = Field(
        default=8 << 20, ge=1024, le=1 << 30, description="maximum size of a JSON body, in bytes"
    )
    max_profile_bytes: int = Field(
        default=1 << 20, ge=1024, le=1 << 30, description="maximum size of a profile file, in bytes"
    )
    body_seconds: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="maximum time for a request's body to arrive, in seconds; then the request gets 408",
    )
    send_seconds: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="maximum time without the client reading any of its answer, in seconds; then its connection is"
        " closed",
    )
    idle_seconds: float = Field(
        default=75.0, gt=0, le=3600, description="time an idle connection is kept open for its next request, in seconds"
    )
    connections: ConnectionCount | Literal["auto"] = Field(
        default="auto",
        description="maximum open connections of each process that speaks HTTP; further ones get 503; auto is what"
        " the limit of open files allows",
    )
    http_processes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="number of processes that speak HTTP, beside the one that runs the model; with 0, that one does"
        " both",
    )
    max_inputs: int = Field(default=256, ge=1, le=1 << 16, description="maximum texts in one request")
    tuning_jobs_per_tenant: int = Field(
        default=4,
        ge=0,
        le=10_000,
        description="maximum tuning jobs of a tenant that are queued or running; jobs beyond it get 429, and 0 turns"
        " jobs off",
    )
    max_tuning_rows: int = Field(default=10_000, ge=2, le=1 << 20, description="maximum examples in one tuning job")
    tuning_share: float = Field(
        default=0.5, gt=0, le=1, description="maximum share of the device's time that tuning takes from serving"
    )
    drain_seconds: float = Field(
        default=10.0, ge=0, le=3600, description="time for requests in flight to finish after SIGTERM, in seconds"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest severity that is logged: debug, info, warning or error"
    )
    log_format: Literal["auto", "json", "pretty"] = Field(
        default="auto", description="format of log lines: json, pretty, or auto (pretty on a terminal, json elsewhere)"
    )
    access_log: bool = Field(default=False, description="log one line for each request")
    otlp_endpoint: str | None = Field(
        default=None,
        description="collector that receives traces by OTLP over HTTP, such as http://localhost:4318; without it,"
        " nothing is traced",
    )
    trace_sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="fraction of requests that are traced where the client does not decide"
    )
    profile_trace: Path | None = Field(
        default=None, description="file for a torch profiler trace of --profile-batches batches and generation steps"
    )
    profile_batches: int = Field(
        default=20, ge=1, le=10_000, description="number of batches and generation steps in that trace"
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_collector(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("it must be like http://HOST:4318")
        if parts.username is not None:
            raise ValueError("credentials belong into OTEL_EXPORTER_OTLP_HEADERS")
        return url

    @model_validator(mode="after")
    def _possible_as_a_whole(self) -> Self:
        if self.api_keys is None and not is_loopback(self.host):
            raise ValueError(
                f"host = {self.host!r} can be reached from other machines, and api_keys is not set:"
                " give --api-keys FILE or listen on 127.0.0.1"
            )
        for given, missing in (
            ("tls_certificate", "tls_key"),
            ("tls_key", "tls_certificate"),
            ("tls_client_ca", "tls_certificate"),
        ):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                option = "--" + missing.replace("_", "-")
                raise ValueError(f"{given} = {str(getattr(self, given))!r} needs {missing}: give {option} FILE")
        if self.http_processes and self.store.startswith("memory:"):
            raise ValueError(
                f"http_processes = {self.http_processes} needs a store that processes share, and store ="
                f" {self.store!r} is one process's own: give --store sqlite:///FILE or redis://…"
            )
        for small, large in (
            ("max_profile_bytes", "max_body_bytes"),
            ("max_inputs", "queue_limit"),
            ("max_batch_tokens", "queue_token_limit"),
        ):
            if isinstance(getattr(self, small), int) and getattr(self, small) > getattr(self, large):
                raise ValueError(f"{small} = {getattr(self, small)} is more than {large} = {getattr(self, large)}")
        return self

    @property
    def store_shown(self) -> str:
        """The store's URL without its password, for logs and people."""
        return without_password(self.store)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def without_password(text: str) -> str:
    """The text with three stars in place of the password of a URL in it."""
    return _PASSWORD.sub("***", text)
