"""What the README says is run: its commands against a real server, its settings against the settings object."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from xpeft_server.model.loading.families import FAMILIES
from xpeft_server.settings_source import describe_settings

# Of the fifteen that `xpeft tune` takes, for a hundred rows on a real model. A server knows no such setting.
BRIEF = {} if os.environ.get("NIGHTLY") == "1" else {"XPEFT_TUNE_EPOCHS": "5"}


class Shell(NamedTuple):
    folder: Path
    environment: dict[str, str]


def block(readme: str, name: str) -> str:
    found = re.search(rf"^```bash {name}\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no block {name!r}"
    return found[1]


@pytest.fixture(scope="module")
def readme(project_root: Path) -> str:
    return (project_root / "README.md").read_text()


@pytest.fixture(scope="module")
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, project_root: Path, warm_programs: Path) -> Shell:
    """Where and how a reader's commands run: an empty folder with examples/ in it, and xpeft on the PATH."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(project_root / "examples")
    path = os.pathsep.join([str(warm_programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return Shell(folder, {**os.environ, "PATH": path})


@pytest.fixture(scope="module")
def server(readme: str, shell: Shell, port: int) -> Iterator[None]:
    with running("exec " + block(readme, "serve").replace("8000", str(port)), shell, port):
        yield


@contextmanager
def running(command: str, shell: Shell, port: int) -> Iterator[None]:
    """A server that is ready, and that ends as it should."""
    process = subprocess.Popen(["bash", "-c", command], cwd=shell.folder, env=shell.environment)
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "xpeft serve ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
            break
        except OSError:
            assert time.monotonic() < deadline, "the server was not ready within two minutes"
            time.sleep(0.1)
    yield
    process.terminate()
    assert process.wait(30) == 0


def run(command: str, shell: Shell, port: int) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace("8000", str(port))],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=shell.folder,
        env={**shell.environment, **BRIEF},
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.usefixtures("server")
def test_the_commands_tune_upload_classify_and_count(readme: str, shell: Shell, port: int) -> None:
    run(block(readme, "tune"), shell, port)
    uploaded = json.loads(run(block(readme, "upload"), shell, port))
    assert uploaded["name"] == "airline-desk"
    answer = json.loads(run(block(readme, "classify"), shell, port))
    assert [each["label"] for each in answer["data"]] == ["baggage", "refund"]
    assert answer["profile_version"] == uploaded["version"]
    metrics = run(block(readme, "metrics"), shell, port)
    assert 'xpeft_requests_total{outcome="ok",route="/v1/classify"} 1.0' in metrics
    assert 'xpeft_profile_uploads_total{outcome="created"} 1.0' in metrics


@pytest.mark.usefixtures("server")
def test_the_command_that_tunes_over_http_starts_a_job_that_succeeds(readme: str, shell: Shell, port: int) -> None:
    job = json.loads(run(block(readme, "tune-http"), shell, port))
    assert (job["object"], job["profile"]) == ("tuning.job", "baggage-desk")
    deadline = time.monotonic() + 180
    while job["finished"] is None:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/jobs/{job['id']}", timeout=10) as answer:
            job = json.load(answer)
    assert (job["status"], job["error"]) == ("succeeded", None)


@pytest.fixture
def writer(readme: str, shell: Shell, tiny_llama: Path, free_port: Callable[[], int]) -> Iterator[int]:
    """The port of the README's server that writes, over a tiny model."""
    port = free_port()
    command = "exec " + block(readme, "write-serve").replace("PATH_OR_HUB_ID", str(tiny_llama))
    with running(command.replace("8001", str(port)), shell, port):
        yield port


def test_the_readmes_writer_writes_for_curl_and_for_openais_client(readme: str, shell: Shell, writer: int) -> None:
    answer = json.loads(run(block(readme, "write").replace("8001", str(writer)), shell, writer))
    assert answer["profile"] == "base"
    assert answer["usage"]["completion_tokens"] > 0
    found = re.search(r"^```python openai\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert found
    # A model with random weights may draw the end of a text as its first token.
    to_the_last_token = 'stream=True, extra_body={"ignore_eos": True})'
    program = found[1].replace("8001", str(writer)).replace("stream=True)", to_the_last_token)
    assert to_the_last_token in program
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip()


def settings_table() -> str:
    rows = ["| option | variable | default | meaning |", "|---|---|---|---|"]
    for each in describe_settings():
        default = f"`{each.default}`" if each.default else ""
        rows.append(f"| `{each.option}` | `{each.variable}` | {default} | {each.help} |")
    return "\n".join(rows)


def test_the_settings_table_is_the_settings_object(readme: str) -> None:
    assert settings_table() in readme, f"README.md should say:\n{settings_table()}"


def test_the_families_of_language_models_are_those_that_are_supported(readme: str) -> None:
    rows = re.findall(r"^\| (.+) \| (encoder|decoder) \| (.+) \|$", readme, re.MULTILINE)
    named = {name: (kind, does) for names, kind, does in rows for name in re.findall(r"`(\w+)`", names)}
    assert named == {
        name: ("decoder", "classify, generate") if family.decoder else ("encoder", "classify")
        for name, family in FAMILIES.items()
    }


def test_every_folder_of_the_map_exists(readme: str, project_root: Path) -> None:
    named = re.findall(r"^    ([a-z_]+/[a-z_/]*) +\S", readme.split("## Map")[1], re.MULTILINE)
    assert len(named) >= 10
    assert [name for name in named if not (project_root / name).exists()] == []


def test_every_target_of_make_that_is_named_exists(readme: str, project_root: Path) -> None:
    makefile = (project_root / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z]+)", readme))
    assert targets >= {"demo", "test", "setup", "lint"}
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
