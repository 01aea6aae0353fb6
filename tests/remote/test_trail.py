"""What a replica noted of a request, in the caller's journey."""

from __future__ import annotations

import pickle
import time

from xpeft_server.engine.requests import Journey
from xpeft_server.remote.trail import Follower, Recorder


def test_a_journey_arrives_bit_by_bit_and_once() -> None:
    there, here = Journey("id"), Journey("id")
    follower, recorder = Follower(here), Recorder(there)
    now = time.monotonic()
    there.note("queue", now, now + 1, texts=3)
    there.prompt_tokens = 5
    follower.follow(pickle.loads(pickle.dumps(recorder.trail())))  # noqa: S301
    there.note("forward", now + 1, now + 2)
    there.completion_tokens = 4
    there.profile_version = "sha256:1"
    follower.follow(recorder.trail())
    follower.follow(recorder.trail())
    assert [(stage.name, dict(stage.facts)) for stage in here.stages] == [("queue", {"texts": 3}), ("forward", {})]
    assert (here.prompt_tokens, here.completion_tokens, here.profile_version) == (5, 4, "sha256:1")


def test_two_calls_of_one_request_share_its_journey() -> None:
    here = Journey("id")
    for tokens in (2, 3):
        there = Journey("id")
        follower, recorder = Follower(here), Recorder(there)
        there.prompt_tokens = tokens
        follower.follow(recorder.trail())
    assert here.prompt_tokens == 5


def test_stages_lie_within_the_time_that_the_caller_waited_whatever_the_other_machines_clock_says() -> None:
    here, there = Journey("id"), Journey("id")
    sent = time.monotonic()
    follower, recorder = Follower(here), Recorder(there)
    came = time.monotonic()
    there.note("queue", came, came)
    trail = recorder.trail()
    follower.follow(trail)
    (stage,) = here.stages
    assert sent <= stage.began == stage.ended <= time.monotonic()
