"""What the Dockerfile says is so, as far as that shows without building it; deploy/check-image.sh builds it."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
import sys
import threading
import tomllib
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from xpeft_server.settings import Settings, is_loopback
from xpeft_server.settings_source import load_settings
from xpeft_server.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CHECK = ROOT / "deploy" / "check-image.sh"
TARGETS = ("cpu", "cuda")


class Instruction(NamedTuple):
    name: str
    rest: str


class Stage(NamedTuple):
    name: str
    below: str
    own: list[Instruction]


def _stages() -> dict[str, Stage]:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = re.sub(r"\\\n\s*", " ", "\n".join(line for line in lines if line and not line.startswith("#")))
    found: list[Stage] = []
    for name, _, rest in (line.partition(" ") for line in text.splitlines()):
        if name == "FROM":
            below, _, called = rest.partition(" AS ")
            found.append(Stage(called, below, []))
        elif found:
            found[-1].own.append(Instruction(name, rest.strip()))
    return {stage.name: stage for stage in found}


STAGES = _stages()


def _image(target: str) -> list[Instruction]:
    """The instructions that a target is made by, with those of the stages below it."""
    stage = STAGES[target]
    return [*(_image(stage.below) if stage.below in STAGES else []), *stage.own]


def _told(target: str, name: str) -> list[str]:
    return [rest for each, rest in _image(target) if each == name]


def _pairs(target: str, name: str) -> dict[str, str]:
    words = [word for rest in _told(target, name) for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def _settings(target: str) -> Settings:
    variables = {name: value for name, value in _pairs(target, "ENV").items() if name.startswith("XPEFT_")}
    return load_settings({}, variables)


def test_who_names_no_target_gets_the_image_for_cpus() -> None:
    assert list(STAGES)[-1] == "cpu"
    assert {stage.below for name, stage in STAGES.items() if name in TARGETS} == {"runtime"}


def test_every_file_that_the_image_copies_is_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line[1:].rstrip("/") for line in ignored if line.startswith("!")]
    copies = [rest.split()[:-1] for stage in STAGES.values() for name, rest in stage.own if name == "COPY"]
    sources = [source.rstrip("/") for copy in copies if "--from=" not in copy[0] for source in copy]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in sent), source


def test_every_package_of_the_wheel_is_copied_to_where_the_wheel_is_made() -> None:
    copied = [Path(source) for rest in _told("program", "COPY") for source in rest.split()[:-1]]
    for package in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert any(Path(package).is_relative_to(folder) for folder in copied), package


def test_a_change_of_the_code_leaves_what_it_needs_as_it_is() -> None:
    for target in TARGETS:
        assert _told(f"{target}-dependencies", "COPY") == ["pyproject.toml constraints.txt ./"]


def test_the_image_gets_what_serving_and_tracing_ask_for() -> None:
    run = next(rest for rest in _told("dependencies", "RUN") if "tomllib" in rest)
    program = shlex.split(run.partition(">")[0])
    assert program[:2] == ["python", "-c"]
    said = subprocess.run([sys.executable, *program[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == PROJECT["dependencies"] + PROJECT["optional-dependencies"]["otel"]


def test_every_use_of_pip_is_told_of_an_index_of_ones_own_and_no_layer_keeps_it() -> None:
    uses = [
        rest
        for stage in STAGES.values()
        for name, rest in stage.own
        if name == "RUN" and re.search(r"\bpip (install|wheel)", rest)
    ]
    assert len(uses) >= 4
    assert all(use.startswith("--mount=type=secret,id=pip.conf,target=/etc/pip.conf ") for use in uses)


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_the_server_as_a_user_without_rights_and_searches_no_working_directory(target: str) -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", _told(target, "USER")[-1])
    assert _pairs(target, "ENV")["PYTHONSAFEPATH"] == "1"
    assert [json.loads(_told(target, name)[0]) for name in ("ENTRYPOINT", "CMD")] == [
        ["tini", "--", "xpeft"],
        ["serve"],
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_server_writes_is_on_a_volume_as_its_root_may_be_read_only(target: str) -> None:
    volumes = json.loads(_told(target, "VOLUME")[0])
    variables = _pairs(target, "ENV")
    assert variables["XPEFT_STORE"] == "sqlite:////data/xpeft.db"
    for path in (variables[name] for name in ("HOME", "HF_HOME", "TRITON_CACHE_DIR", "XPEFT_API_KEYS")):
        assert any(Path(path).is_relative_to(volume) for volume in volumes), path


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_sets_only_settings_that_exist_and_needs_a_key_file(target: str) -> None:
    settings = _settings(target)
    assert not is_loopback(settings.host)
    assert settings.api_keys == Path("/keys/keys.json")
    assert _told(target, "EXPOSE") == [str(settings.port)]


def test_only_the_image_for_gpus_insists_on_one() -> None:
    assert [_settings(target).device for target in TARGETS] == ["auto", "cuda"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_labels_say_what_the_project_says(target: str) -> None:
    arguments = dict(rest.split("=", 1) for rest in _told(target, "ARG") if "=" in rest)
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in _pairs(target, "LABEL").items()}
    assert (labels["version"], arguments["VERSION"]) == ("$VERSION", VERSION)
    assert (labels["title"], labels["description"]) == (PROJECT["name"], PROJECT["description"])
    assert labels["licenses"] == PROJECT["license"]
    assert (labels["source"], labels["revision"]) == ("$SOURCE", "$REVISION")


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.mark.parametrize("target", TARGETS)
def test_the_health_check_of_the_image_fails_where_the_server_has_gone(target: str) -> None:
    (check,) = _told(target, "HEALTHCHECK")
    program, *arguments = json.loads(check[check.index("CMD ") + 4 :])
    assert program == "python"

    def healthy(port: int) -> bool:
        environment = _pairs(target, "ENV") | {"XPEFT_PORT": str(port)}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
        return done.returncode == 0

    with HTTPServer(("127.0.0.1", 0), _Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert healthy(server.server_port)
        server.shutdown()
        thread.join()
    assert not healthy(server.server_port)


def test_every_server_that_a_page_starts_is_started_anew_and_has_time_to_drain() -> None:
    page = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^docker run --detach .*\bxpeft-server\b.*$", page, re.MULTILINE)
    assert len(commands) >= 4
    for words in map(shlex.split, commands):
        assert words[words.index("--restart") + 1] == "unless-stopped", words
        assert float(words[words.index("--stop-timeout") + 1]) > Settings().drain_seconds, words


def test_the_check_of_the_image_refuses_what_it_does_not_know() -> None:
    assert CHECK.stat().st_mode & stat.S_IXUSR
    done = subprocess.run([CHECK, "--fast"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: deploy/check-image.sh [--keep FILE] [--load NAME]\n"


def test_the_page_on_containers_says_what_the_check_does_not_prove_in_the_checks_own_words() -> None:
    script, page = (
        " ".join(path.read_text(encoding="utf-8").split()) for path in (CHECK, ROOT / "docs" / "containers.md")
    )
    found = re.search(r"does not prove:? (- .*?\.) EOF", script)
    assert found
    assert found[1] in page
