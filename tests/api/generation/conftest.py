"""A server whose engine generates, and tells what a test has written down for it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import orjson
import pytest

from xpeft_server.engine.requests import Finished, Piece, Started

VERSION = "sha256:" + "cd" * 32
DONE = b"data: [DONE]\n\n"


class Script:
    """What the engine tells: news as they are, errors raised, events waited for.

    ``of`` has scripts of their own for some prompts. ``withdrawn`` has the prompts that were given up on the way.
    """

    def __init__(self):
        self.lines = [
            Started(VERSION, 0.001),
            Piece("Hel"),
            Piece("lo"),
            Finished("stop", 3, 2, 0.002),
        ]
        self.of = {}
        self.asked = []
        self.waiting = asyncio.Event()
        self.withdrawn = []

    async def generate(self, request):
        self.asked.append(request)
        try:
            for line in self.of.get(request.prompt, self.lines):
                if isinstance(line, Exception):
                    raise line
                if isinstance(line, asyncio.Event):
                    self.waiting.set()
                    await line.wait()
                elif isinstance(line, Started) and request.profile is None:
                    yield line._replace(profile_version=None)
                else:
                    yield line
        except (GeneratorExit, asyncio.CancelledError):
            self.withdrawn.append(request.prompt)
            raise

    def fail(self, error, *, after=0):
        """Raise it in place of the line of this number."""
        self.lines[after:] = [error]

    def hold(self, *, after):
        """Wait before the line of this number, until the event is set that is returned."""
        event = asyncio.Event()
        self.lines.insert(after, event)
        return event


class Stream:
    """A client of the application that posts, reads the answer part by part while it comes, and can go away."""

    def __init__(self, app, path, document):
        self.parts = asyncio.Queue()
        self.start = None
        self._left = asyncio.Event()
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        body = {"type": "http.request", "body": orjson.dumps(document), "more_body": False}
        messages = iter([body])

        async def receive():
            with contextlib.suppress(StopIteration):
                return next(messages)
            await self._left.wait()
            return {"type": "http.disconnect"}

        self.task = asyncio.create_task(app(scope, receive, self._send))

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.parts.put_nowait(message["body"])

    async def part(self):
        async with asyncio.timeout(10):
            return await self.parts.get()

    async def leave(self):
        self._left.set()
        async with asyncio.timeout(10):
            await self.task


@pytest.fixture
def engine(engine):
    engine.info = dataclasses.replace(engine.info, generates=True, model_type="llama")
    engine.script = Script()
    engine.generate = engine.script.generate
    return engine


@pytest.fixture
def script(engine):
    return engine.script


@pytest.fixture
async def post(app):
    """Begin a request and read its answer while it comes."""
    streams = []

    def start(path, **document):
        streams.append(Stream(app, path, document))
        return streams[-1]

    yield start
    for stream in streams:
        await stream.leave()


@pytest.fixture
def events():
    """The documents of a whole stream that ended well."""

    def read(answer):
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.content.endswith(DONE)
        parts = answer.content.removesuffix(DONE).split(b"\n\n")
        assert parts.pop() == b""
        assert all(part.startswith(b"data: ") and b"\n" not in part for part in parts)
        return [orjson.loads(part.removeprefix(b"data: ")) for part in parts]

    return read


@pytest.fixture
def usage():
    """What OpenAI's routes tell of these tokens."""
    return lambda prompt, completion, cached=0: {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
