"""What was measured of throughput, from the files that the benchmarks wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .table import table

_RESULTS: Final = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
_DTYPES: Final = ("float32", "bfloat16")


def throughput_table() -> str:
    """Texts and tokens a second on the machine that the results name."""
    serve = [_variants(f"serve-cpu-{dtype}.jsonl") for dtype in _DTYPES]
    generate = [_variants(f"generate-cpu-{dtype}.jsonl") for dtype in _DTYPES]
    rows = (
        ("classify over HTTP, 32 requests in flight, texts a second", *(_rate(each["http c=32"]) for each in serve)),
        ("the same, tokens a second", *(_tokens(each) for each in serve)),
        ("classify over HTTP, one request at a time, texts a second", *(_rate(each["http c=1"]) for each in serve)),
        (
            "generate, 64 requests at once, new tokens a second",
            *(_rate(each["engine 32 profiles"]) for each in generate),
        ),
        (
            "generate, requests that come one after the other, new tokens a second",
            *(_rate(each["staggered engine 32 profiles"]) for each in generate),
        ),
    )
    return f"{_conditions(serve[0]['http c=32'])}\n\n{table(('', *_DTYPES), rows)}"


def _variants(name: str) -> dict[str, Mapping[str, Any]]:
    lines = (_RESULTS / name).read_text(encoding="utf-8").splitlines()
    return {line["variant"]: line for line in map(json.loads, lines)}


def _rate(variant: Mapping[str, Any]) -> str:
    """Three digits: more than that does not repeat."""
    return f"{float(format(variant['per_second'], '.3g')):,.0f}"


def _tokens(variants: Mapping[str, Mapping[str, Any]]) -> str:
    tokens = variants["engine batch=32"]["details"]["mean_tokens"] * variants["http c=32"]["per_second"]
    return _rate({"per_second": tokens})


def _conditions(variant: Mapping[str, Any]) -> str:
    machine, profiles = variant["machine"], variant["settings"]["profiles"]
    cpu = machine["cpu"].partition(" (")[0]
    return (
        f"Measured on {variant['date'][:10]} on {machine['cores']} cores of an {cpu}, no GPU, with {profiles} profiles:"
        " classify with MiniLM and texts of 31 tokens (`xpeft bench serve`), generate with a Llama-like model of 12.6 M"
        " parameters (`xpeft bench generate`). The client had the same cores."
    )
