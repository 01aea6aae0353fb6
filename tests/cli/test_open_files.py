from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from xpeft_server.cli.open_files import raise_open_files
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
