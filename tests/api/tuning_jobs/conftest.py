"""Jobs that a client of the fake server submits, looks at and waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

Job = dict[str, Any]

EXAMPLES = [
    {"text": "My bag is lost", "label": "baggage"},
    {"text": "Money back", "text_pair": "please", "label": "refund"},
]


@pytest.fixture
def submit() -> Callable[..., Awaitable[httpx.Response]]:
    """Ask for a profile to be tuned, with two examples unless ``fields`` of the body say otherwise."""

    async def submit(
        client: httpx.AsyncClient, name: str = "desk", *, headers: dict[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        body = {"examples": EXAMPLES, **fields}
        return await client.post(f"/v1/profiles/{name}/tune", json=body, headers=headers)

    return submit


@pytest.fixture
def tune(submit: Callable[..., Awaitable[httpx.Response]]) -> Callable[..., Awaitable[Job]]:
    """Submit what is accepted; the job as it was answered."""

    async def tune(client: httpx.AsyncClient, name: str = "desk", **fields: Any) -> Job:
        answer = await submit(client, name, **fields)
        assert answer.status_code == 202, answer.text
        return answer.json()

    return tune


@pytest.fixture
def job_of() -> Callable[[httpx.AsyncClient, Job], Awaitable[Job]]:
    """The job as it is now."""

    async def job_of(client: httpx.AsyncClient, job: Job) -> Job:
        return (await client.get(f"/v1/jobs/{job['id']}")).json()

    return job_of


@pytest.fixture
def becomes(job_of: Callable[..., Awaitable[Job]]) -> Callable[..., Awaitable[Job]]:
    """Wait until the job has one of the states; the job as it is then."""

    async def becomes(client: httpx.AsyncClient, job: Job, *statuses: str) -> Job:
        async with asyncio.timeout(10):
            while (found := await job_of(client, job))["status"] not in statuses:
                await asyncio.sleep(0)
        return found

    return becomes
