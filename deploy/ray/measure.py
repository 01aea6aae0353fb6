"""Two replicas against one: two applications on one Ray and one store, asked the same in turns.

    python deploy/ray/measure.py --rounds 10 --json ray.jsonl

Each replica computes with one thread. The client, Serve's proxy and the ingresses take what they need of the same
processors: on a machine with two of them, two replicas cannot be twice as fast as one.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import numpy as np
import typer

from xpeft_benchmarks.command_line import shown_word
from xpeft_benchmarks.processes.server_client import geometry_of
from xpeft_benchmarks.random_profiles import random_profile
from xpeft_benchmarks.results import Context, Result, table_rows, write_lines
from xpeft_benchmarks.rounds import ratio, time_interleaved
from xpeft_benchmarks.texts import example_texts, read_texts, sample_texts
from xpeft_profiles import write_profile_file

REPLICAS: Final = {"one": 1, "two": 2}
# More than any machine needs for this: which replica runs where is the operating system's business here.
_RAY_CPUS: Final = 8
_SEED: Final = 7

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command(help=__doc__)
def measure(
    plm: Annotated[str, typer.Option(help="Language model: a path, a hub id, or minilm.")] = "minilm",
    bank: Annotated[str, typer.Option(help="Adapter bank.")] = "random:N=100,R=48,seed=0,std=0.1",
    requests: Annotated[int, typer.Option(min=1, help="Requests of one turn; few make its end count.")] = 128,
    inputs: Annotated[int, typer.Option(min=1, max=256, help="Texts in a request.")] = 32,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 12,
    profiles: Annotated[int, typer.Option(min=1, help="Different random profiles.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 10,
    data: Annotated[Path | None, typer.Option(help="JSON lines with texts; without it, the examples.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write a line for each variant to this file.")
    ] = None,
) -> None:
    settings = {"plm": plm, "bank": bank, "requests": requests, "inputs": inputs, "in_flight": in_flight}
    settings |= {"profiles": profiles, "rounds": rounds, "threads": 1, "seed": _SEED}
    context = Context.now("ray", shlex.join(["python", *map(shown_word, sys.argv)]), settings)
    texts = sample_texts(example_texts() if data is None else read_texts(data), requests * inputs, _rng())
    bodies = [
        {"profile": f"p{number % profiles}", "input": texts[number * inputs : (number + 1) * inputs]}
        for number in range(requests)
    ]
    with _served(plm, bank) as url:
        _upload(url + "/one", profiles)
        variants = {name: partial(_turn, f"{url}/{name}", bodies, in_flight) for name in REPLICAS}
        seconds = time_interleaved(variants, rounds, _SEED, on_round=_show)
    speeds = {name: [len(texts) / each for each in seconds[name]] for name in REPLICAS}
    results = [
        Result("one replica", "requests to one engine behind an ingress", "texts", speeds["one"]),
        Result(
            "two replicas",
            "the same to two engines behind an ingress",
            "texts",
            speeds["two"],
            ratios=[ratio("one replica", speeds["two"], speeds["one"])],
        ),
    ]
    for row in table_rows(results):
        typer.echo(" | ".join(row))
    if json_file is not None:
        write_lines(json_file, results, context)


@contextmanager
def _served(plm: str, bank: str) -> Iterator[str]:
    """Where the applications answer, each under its name; Ray and all that it started end with this."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    from xpeft_ray.application import build

    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        ray.init(num_cpus=_RAY_CPUS, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            told = {"plm": plm, "bank": bank, "device": "cpu", "store": f"sqlite:///{folder}/profiles.db"}
            # Nobody shall be refused: what is measured is how fast all of it is done.
            told |= {"queue_seconds": "3600", "queue_limit": "65536", "queue_token_limit": "16777216"}
            for name, count in REPLICAS.items():
                scale = {"min_replicas": str(count), "max_replicas": str(count)}
                serve.run(build(told | scale), name=name, route_prefix=f"/{name}")
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def _upload(url: str, profiles: int) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        geometry = geometry_of(client.get("/info").json())
        for index in range(profiles):
            body = write_profile_file(random_profile(geometry, seed=_SEED, index=index))
            headers = {"content-type": "application/octet-stream"}
            client.put(f"/v1/profiles/p{index}", content=body, headers=headers).raise_for_status()


def _turn(url: str, bodies: Sequence[dict[str, Any]], in_flight: int) -> None:
    """All of them, so many at a time. Raises: HTTPStatusError if one is not answered with 200."""

    async def all_of_them() -> None:
        waiting = iter(bodies)

        async def ask(client: httpx.AsyncClient) -> None:
            for body in waiting:
                (await client.post("/v1/classify", json=body)).raise_for_status()

        limits = httpx.Limits(max_connections=in_flight)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
            await asyncio.gather(*(ask(client) for _ in range(in_flight)))

    asyncio.run(all_of_them())


def _show(number: int) -> None:
    typer.echo(f"round {number}")


def _rng() -> np.random.Generator:
    return np.random.default_rng(_SEED)


if __name__ == "__main__":
    app()
