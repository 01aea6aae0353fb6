"""Records of tuning jobs: ids, and bytes in and out."""

from __future__ import annotations

import re

import pytest

from xpeft_profiles import JobRecord, RecordDamaged, check_name, new_job_id
from xpeft_profiles.jobs.record import decode_job, encode_job

RECORD = JobRecord(
    tenant="acme",
    id="job_1",
    profile="desk",
    owner="host 1",
    status="failed",
    created=1.5,
    finished=2.25,
    progress={"epoch": 1, "loss": 0.5},
    error={"message": "für alle", "param": None},
)


def test_ids_sort_by_age_and_are_names_that_cannot_be_guessed() -> None:
    times = [0.0, 1.0, 1.000001, 1_767_225_600.0, 1_767_225_600.000002, 4e9]
    ids = [new_job_id(created) for created in times]
    assert ids == sorted(ids)
    assert len({new_job_id(1.0) for _ in range(1000)}) == 1000
    for each in ids:
        assert re.fullmatch(r"job_[0-9a-f]{38}", each)
        check_name(each)


def test_a_record_comes_back_as_it_was() -> None:
    assert decode_job(encode_job(RECORD)) == RECORD


def test_what_only_a_newer_server_knows_of_a_job_is_left_out() -> None:
    newer = encode_job(RECORD)[:-1] + b',"priority":7,"stages":[{"name":"head"}]}'
    assert decode_job(newer) == RECORD


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b'"x"', b"\xff", encode_job(RECORD).replace(b'"failed"', b'"lost"'), b'{"x":1}'],
)
def test_bytes_that_are_no_record_are_damaged(data: bytes) -> None:
    with pytest.raises(RecordDamaged, match="tuning job cannot be read"):
        decode_job(data)


@pytest.mark.parametrize(
    ("status", "finished"), [("queued", 1.0), ("running", 1.0), ("succeeded", None), ("lost", 1.0)]
)
def test_a_state_that_cannot_be_is_refused(status: str, finished: float | None) -> None:
    with pytest.raises(ValueError, match=status):
        JobRecord(
            tenant="a",
            id="b",
            profile="c",
            owner="d",
            status=status,  # type: ignore[arg-type]
            created=0.0,
            finished=finished,
        )
