"""What commands say to a reader that is a file or grep."""

from __future__ import annotations

import pytest

from xpeft_server.cli.screen import show_facts, show_rows


def test_facts_that_nobody_watches_have_a_line_each_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    long = " ".join(map(str, range(500)))
    show_facts([("bytes", "12"), ("provenance", long), ("description", "")])
    assert capsys.readouterr().out == f"bytes        12\nprovenance   {long}\ndescription\n"


def test_no_line_of_a_table_that_nobody_watches_ends_in_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(["id", "tenant"], [["a-1", "a-long-name"], ["b", "c"]])
    assert capsys.readouterr().out == "id   tenant\na-1  a-long-name\nb    c\n"
