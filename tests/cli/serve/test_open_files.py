from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from xpeft_server.cli.main import app
from xpeft_server.cli.serve.open_files import OTHER_FILES

PROGRAM = """
import resource, sys
from xpeft_server.cli.serve.open_files import raise_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
raise_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [(100, 200, "200 200"), (200, 200, "200 200"), (1024, 66_000, "65536 66000"), (66_000, 66_000, "66000 66000")],
)
def test_as_many_as_the_user_may_have_up_to_enough(soft: int, hard: int, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(soft), str(hard)], capture_output=True, text=True, check=False
    )
    if "ValueError" in done.stderr:
        pytest.skip(f"this user may not have {hard} open files")
    assert (done.stdout.strip(), done.stderr) == (expected, "")


CHOICE = """
import resource, sys
from xpeft_server.cli.serve.open_files import choose_connections
from xpeft_server.settings import SettingsInvalid
soft, asked = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    print(choose_connections(asked if asked == "auto" else int(asked)))
except SettingsInvalid as refused:
    print(refused)
"""


@pytest.mark.parametrize(
    ("soft", "asked", "said"),
    [
        (1024, "auto", str(1024 - OTHER_FILES)),
        (1024, "10", "10"),
        (1024, str(1024 - OTHER_FILES), str(1024 - OTHER_FILES)),
        (1024, str(1025 - OTHER_FILES), f"connections = {1025 - OTHER_FILES} cannot be used: of the 1024 files"),
        (200, "auto", "connections = auto cannot be used: of the 200 files"),
    ],
)
def test_the_files_that_the_process_needs_are_no_connections(soft: int, asked: str, said: str) -> None:
    command = [sys.executable, "-c", CHOICE, str(soft), asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(said)


def test_more_connections_than_files_are_refused_at_the_start() -> None:
    refused = CliRunner().invoke(app, ["serve", "--store", "memory://", "--connections", "1048576"])
    assert refused.exit_code == 2
    assert "connections = 1048576 cannot be used: of the " in refused.stderr
    assert "--connections or XPEFT_CONNECTIONS" in refused.stderr
