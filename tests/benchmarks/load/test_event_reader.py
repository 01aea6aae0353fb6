from __future__ import annotations

import pytest

from xpeft_benchmarks.load.event_reader import EventReader

LAST = b'data: {"text":"","finish_reason":"length","usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_a_text_is_timed_by_its_pieces_however_the_bytes_are_cut() -> None:
    events = EventReader()
    stream = b'data: {"text":"a"}\n\n: still there\n\ndata: {"text":"b"}\n\n'
    for place in range(len(stream)):
        events.feed(stream[place : place + 1], now=10.0 if place < 20 else 12.0)
    events.feed(LAST + DONE, now=13.0)
    assert (events.moments, events.is_whole) == ([10.0, 12.0], True)
    assert (events.prompt_tokens, events.new_tokens) == (3, 5)
    # Five tokens came in two pieces: four of them after the first, within two seconds.
    assert events.stages(9.0) == {"first_token": 1.0, "longest_pause": 2.0, "per_token": 0.5}


def test_the_longest_pause_is_between_two_pieces() -> None:
    events = EventReader(moments=[1.0, 1.5, 4.0, 4.25], new_tokens=4)
    assert events.stages(0.0)["longest_pause"] == 2.5


def test_a_text_of_one_piece_has_no_time_of_a_token_after_it() -> None:
    assert EventReader(moments=[1.0], new_tokens=1).stages(0.5) == {"first_token": 0.5}
    assert EventReader().stages(0.5) == {}


def test_a_stream_that_breaks_off_is_not_whole() -> None:
    events = EventReader()
    events.feed(b'data: {"text":"a"}\n\ndata: {"error":{"message":"gone"}}\n\n', now=1.0)
    assert not events.is_whole


def test_an_event_that_is_not_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="unexpected"):
        EventReader().feed(b"data: {oops}\n\n", now=1.0)
