"""Log lines for machines and for people, which nobody can forge and which hold no key or password."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, Literal, TextIO, TypeVar

LogFormat = Literal["json", "pretty"]
Labels = Mapping[str, str]
Value = TypeVar("Value")

request_labels: ContextVar[Callable[[], Labels] | None] = ContextVar("request_labels", default=None)
"""Returns the labels of the request that is being handled; every line that is logged meanwhile carries them."""

# A record that concerns a request which is not being handled here brings its labels along, by ``extra``.
_OWN_LABELS: Final = ("request_id", "tenant")
# Keys of this server, and passwords in URLs.
_SECRETS: Final = re.compile(r"(?<![A-Za-z0-9_-])xp_[A-Za-z0-9_-]{43}|(?<=://)[^/\s@]*:[^/\s]*(?=@)")
# Characters that end a line or move a terminal's cursor: C0 and C1 but for the tab, DEL, and Unicode's own line ends.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), *range(127, 160))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_CONTROLS_IN_LINES: Final = {code: text for code, text in _CONTROLS.items() if code != 10}


class JsonLines(logging.Formatter):
    """A JSON object a line, in ASCII: ``timestamp`` (RFC 3339), ``level``, ``logger``, ``message``, and what is known.

    Args:
        constant: fields of every line.
    """

    def __init__(self, **constant: str) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            **self._constant,
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = without_secrets(self.formatStack(record.stack_info))
        return json.dumps(line, default=repr)


class PrettyLines(logging.Formatter):
    """Time here, level, logger, message, and what else is known in brackets; what follows a line is indented.

    Args:
        constant: fields of every line.
    """

    def __init__(self, **constant: str) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        message = without_secrets(record.getMessage()).translate(_CONTROLS)
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {message}"
        known = " ".join(f"{name}={value}" for name, value in {**self._constant, **_fields(record)}.items())
        if known:
            line += f" [{known.translate(_CONTROLS)}]"
        if record.exc_info:
            line += _indented(self.formatException(record.exc_info))
        if record.stack_info:
            line += _indented(self.formatStack(record.stack_info))
        return line


def configure_logging(format_: LogFormat, level: str, stream: TextIO, **constant: str) -> None:
    """All of this process's log goes to ``stream``, warnings of libraries too; unless somebody has configured it.

    Args:
        level: least severity that is logged.
        constant: fields of every line.
    """
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(**constant) if format_ == "json" else PrettyLines(**constant))
    logging.basicConfig(handlers=[handler], level=level.upper())
    logging.captureWarnings(True)


def format_for(asked: str, stream: TextIO) -> LogFormat:
    """``auto``: pretty lines where a person reads, JSON everywhere else."""
    if asked == "auto":
        return "pretty" if stream.isatty() else "json"
    return "pretty" if asked == "pretty" else "json"


def without_secrets(text: str) -> str:
    """Mask keys and the passwords of URLs, whoever logged them."""
    return _SECRETS.sub("***", text)


def field_without_secrets(value: Value) -> Value | str:
    """Of a field beside a message: the name that a client gives a request or a profile may be its key."""
    return without_secrets(value) if isinstance(value, str) else value


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Labels of the request, and what ``extra={"fields": …}`` brought."""
    fields: dict[str, object] = {}
    labels = request_labels.get()
    if labels is not None:
        fields.update(labels())
    for name in _OWN_LABELS:
        if value := getattr(record, name, None):
            fields[name] = value
    fields.update(getattr(record, "fields", ()))
    return {name: field_without_secrets(value) for name, value in fields.items()}


def _indented(text: str) -> str:
    lines = without_secrets(text).translate(_CONTROLS_IN_LINES).split("\n")
    return "".join(f"\n    {line}" for line in lines)
