"""`make audit` over a database of our own: what it finds, and that it is silent where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# Stands for pip-audit: writes the report that it is told to, as the real one does, and ends with its code.
PROGRAM = """#!/bin/sh
while [ "$1" != --output ]; do shift; done
[ -z "$REPORT" ] && { echo "service error" >&2; exit 1; }
printf '%s' "$REPORT" >"$2"
exit 1
"""


class Database(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def database() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Database) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def audit(project_root: Path, tmp_path: Path) -> Any:
    program = tmp_path / "bin" / "pip-audit"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)

    def run(url: str, report: Any = None) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "OSV_URL": url, "AUDIT_VENV": str(tmp_path)}
        env["REPORT"] = "" if report is None else json.dumps(report)
        return subprocess.run(
            [project_root / ".ci" / "audit"], env=env, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def report(*vulnerabilities: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": [{"name": "jinja2", "version": "3.1.6", "vulns": list(vulnerabilities)}], "fixes": []}


def test_a_known_vulnerability_fails_with_package_and_remedy(audit: Any, database: str) -> None:
    done = audit(database, report({"id": "GHSA-x", "fix_versions": ["4.0"]}, {"id": "GHSA-y", "fix_versions": []}))
    assert done.returncode == 1
    assert "audit: jinja2 3.1.6: GHSA-x, fixed in 4.0\n" in done.stdout
    assert "audit: jinja2 3.1.6: GHSA-y, fixed in no version yet\n" in done.stdout


def test_none_is_said_and_is_no_failure(audit: Any, database: str) -> None:
    done = audit(database, report())
    assert (done.returncode, done.stdout) == (0, "audit: 1 packages, no known vulnerabilities\n")


def test_a_database_that_cannot_be_reached_is_a_line_and_no_failure(audit: Any) -> None:
    began = time.monotonic()
    done = audit("http://127.0.0.1:9/", report({"id": "GHSA-x", "fix_versions": []}))
    assert (done.returncode, done.stdout) == (0, "audit: skipped, http://127.0.0.1:9/ cannot be reached\n")
    assert time.monotonic() - began < 15


def test_a_database_that_fails_on_the_way_is_a_line_and_no_failure(audit: Any, database: str) -> None:
    done = audit(database)
    assert (done.returncode, done.stdout) == (0, "audit: skipped, pip-audit did not finish: service error\n")
