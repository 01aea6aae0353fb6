"""Lines of the log: what is in one, and what nobody gets into one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from xpeft_server.log_lines import JsonLines, PrettyLines, format_for, request_labels

KEY = "xp_" + "aB3-_" * 8 + "xyz"
HOSTILE = "a\nERROR root: forged\r\x1b[2J\x85\u2028\ud800"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.Logger("xpeft.test")
    yield logger
    logger.handlers.clear()


class Written:
    """What a logger writes with a formatter."""

    def __init__(self, logger: logging.Logger, formatter: logging.Formatter) -> None:
        self._stream = io.StringIO()
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(formatter)
        logger.addHandler(handler)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def objects(self) -> list[dict[str, Any]]:
        lines = self.text.split("\n")
        assert lines.pop() == ""
        return [json.loads(line) for line in lines]


def test_a_line_of_json_says_when_how_bad_who_and_what(logger: logging.Logger) -> None:
    written = Written(logger, JsonLines(process="tuning worker"))
    before = datetime.now(UTC)
    logger.warning("%d of %s", 3, "seven")
    (line,) = written.objects()
    stamp = line.pop("timestamp")
    assert stamp.endswith("Z")
    assert abs((datetime.fromisoformat(stamp) - before).total_seconds()) < 5
    assert line == {
        "level": "warning",
        "logger": "xpeft.test",
        "message": "3 of seven",
        "process": "tuning worker",
    }


def test_a_timestamp_has_milliseconds_also_on_the_full_second() -> None:
    record = logging.makeLogRecord({"msg": "m", "created": 1767225600.0})
    assert json.loads(JsonLines().format(record))["timestamp"] == "2026-01-01T00:00:00.000Z"


@pytest.mark.parametrize("formatter", [JsonLines(), PrettyLines()])
def test_what_a_client_sends_makes_no_second_line(logger: logging.Logger, formatter: logging.Formatter) -> None:
    written = Written(logger, formatter)
    logger.error("name %s", HOSTILE, extra={"request_id": HOSTILE, "fields": {"profile": HOSTILE}})
    assert written.text.count("\n") == 1
    assert [character for character in written.text[:-1] if not character.isprintable()] in ([], ["\ud800"] * 3)


def test_json_keeps_every_character(logger: logging.Logger) -> None:
    written = Written(logger, JsonLines())
    logger.error("%s", HOSTILE, extra={"fields": {"profile": HOSTILE}})
    (line,) = written.objects()
    assert (line["message"], line["profile"]) == (HOSTILE, HOSTILE)
    assert written.text.isascii()


def test_an_exception_is_in_its_line_of_json(logger: logging.Logger) -> None:
    written = Written(logger, JsonLines())
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed", stack_info=True)
    (line,) = written.objects()
    assert line["exception"].startswith("Traceback (most recent call last)")
    assert line["exception"].endswith("ValueError: two\nlines")
    assert "test_log_lines.py" in line["stack"]


def test_an_exception_behind_a_pretty_line_is_indented_so_that_it_forges_none(logger: logging.Logger) -> None:
    written = Written(logger, PrettyLines())
    try:
        raise ValueError(HOSTILE.replace("\ud800", ""))
    except ValueError:
        logger.exception("failed")
    first, *rest = written.text.rstrip("\n").split("\n")
    assert first.endswith("ERROR xpeft.test: failed")
    assert len(rest) > 3
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in written.text


@pytest.mark.parametrize("formatter", [JsonLines(), PrettyLines()])
@pytest.mark.parametrize(
    ("said", "secret"),
    [
        (f"key {KEY} is wrong", KEY),
        (f"Authorization: Bearer {KEY}", KEY),
        ("redis://user:hush@redis:6379/0 failed", "hush"),
        ("rediss://:hush@hush@redis/0", "hush"),
        ("https://user:hush@collector:4318/v1/traces", "hush"),
    ],
)
def test_keys_and_passwords_of_urls_are_blotted_out_whoever_logs_them(
    logger: logging.Logger, formatter: logging.Formatter, said: str, secret: str
) -> None:
    written = Written(logger, formatter)
    logger.error(said)
    try:
        raise RuntimeError(said)
    except RuntimeError:
        logger.exception("%s", said, stack_info=True)
    assert secret not in written.text
    assert written.text.count("***") >= 3


@pytest.mark.parametrize("formatter", [JsonLines(), PrettyLines()])
def test_a_key_is_blotted_out_where_a_client_gives_it_for_a_name(
    logger: logging.Logger, formatter: logging.Formatter
) -> None:
    written = Written(logger, formatter)
    logger.info("asked", extra={"request_id": KEY, "tenant": "acme", "fields": {"profile": KEY, "seconds": 0.5}})
    assert KEY not in written.text
    assert written.text.count("***") == 2
    assert "acme" in written.text
    assert "0.5" in written.text


@pytest.mark.parametrize(
    "said", ["http://localhost:4318/v1/traces", "xp_short", "profile xp_desk", "http://host/a:b c@d", "a:b@c"]
)
def test_what_is_no_secret_stays(logger: logging.Logger, said: str) -> None:
    written = Written(logger, JsonLines())
    logger.error(said)
    assert written.objects()[0]["message"] == said


async def test_a_line_carries_the_labels_of_the_request_that_is_being_handled(logger: logging.Logger) -> None:
    written = Written(logger, JsonLines())

    async def handle(name: str) -> None:
        request_labels.set(lambda: {"request_id": name, "tenant": "acme"})
        await asyncio.sleep(0)
        logger.info(name)
        await asyncio.to_thread(logger.info, name)

    await asyncio.gather(*map(handle, "abc"))
    logger.info("nobody's")
    *lines, last = written.objects()
    assert len(lines) == 6
    assert all((line["request_id"], line["tenant"]) == (line["message"], "acme") for line in lines)
    assert "request_id" not in last


def test_a_record_that_concerns_another_request_brings_its_own_labels(logger: logging.Logger) -> None:
    written = Written(logger, PrettyLines())
    logger.info("m", extra={"request_id": "r-2", "tenant": "", "fields": {"seconds": 0.5}})
    assert written.text.endswith("INFO xpeft.test: m [request_id=r-2 seconds=0.5]\n")


def test_auto_is_pretty_on_a_terminal_and_json_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert [format_for("auto", stream) for stream in (Terminal(), io.StringIO())] == ["pretty", "json"]
    assert [format_for(asked, Terminal()) for asked in ("json", "pretty")] == ["json", "pretty"]
    assert format_for("pretty", io.StringIO()) == "pretty"


def test_a_library_that_warns_is_in_the_log_and_not_beside_it() -> None:
    program = """
import sys, warnings
from xpeft_server.log_lines import configure_logging
configure_logging("json", "info", sys.stderr)
warnings.warn("old")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "UserWarning: old" in line["message"]
