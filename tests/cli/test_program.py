"""The program ``xpeft`` from its first line: what Ctrl-C does before a command has begun."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# What is done in the place of the restart, and of the commands.
PROGRAM = """
import os, signal
from xpeft_server.cli import __main__ as program, main

def interrupted():
    os.kill(os.getpid(), signal.SIGINT)

def commands():
    print("the commands begin", flush=True)
    {commands}

signal.signal(signal.SIGINT, signal.{handler})
program.restart_with_tuned_heap = lambda: {restart}
main.app = commands
program.main()
"""


@pytest.mark.parametrize(
    ("handler", "restart", "commands", "status", "said"),
    [
        ("default_int_handler", "interrupted()", "pass", -signal.SIGINT, ""),
        ("default_int_handler", "None", "interrupted()", 130, "the commands begin\n"),
        ("SIG_IGN", "interrupted()", "interrupted()", 0, "the commands begin\n"),
    ],
    ids=["before the commands", "while they are put together", "where it is ignored"],
)
def test_ctrl_c_ends_a_program_that_has_begun_nothing_without_a_word(
    handler: str, restart: str, commands: str, status: int, said: str
) -> None:
    program = PROGRAM.format(handler=handler, restart=restart, commands=commands)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, said, "")
