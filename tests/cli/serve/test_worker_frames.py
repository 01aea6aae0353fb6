from __future__ import annotations

import asyncio
import io

import pytest

from xpeft_server.cli.serve.worker_frames import Frame, encode_frame, read_frame, receive_frame

FRAMES = [
    Frame({}),
    Frame({"text": "für alle\n", "loss": 0.5, "labels": ["a"]}, b"\0" * 100_000),
    Frame({"examples": ["x" * 200_000]}),
]


def test_frames_come_out_of_a_file_as_they_went_in() -> None:
    file = io.BytesIO(b"".join(map(encode_frame, FRAMES)))
    assert [read_frame(file) for _ in FRAMES] == FRAMES
    assert read_frame(file) is None


async def test_frames_come_out_of_a_stream_as_they_went_in() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"".join(map(encode_frame, FRAMES)))
    reader.feed_eof()
    assert [await receive_frame(reader) for _ in FRAMES] == FRAMES
    with pytest.raises(asyncio.IncompleteReadError):
        await receive_frame(reader)


@pytest.mark.parametrize("lost", [1, 5, 100_000, 100_010])
def test_a_frame_that_breaks_off_is_none(lost: int) -> None:
    assert read_frame(io.BytesIO(encode_frame(FRAMES[1])[:-lost])) is None
