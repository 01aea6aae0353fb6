"""deploy/check-*.sh: what they take from other files is there, and pages say what they do not prove."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

CHECKS = {
    "check-compose.sh": ("containers.md", "[--load NAME] IMAGE"),
    "check-kubernetes.sh": ("kubernetes.md", "[--load NAME] IMAGE PROGRAMS"),
}


def _words(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


@pytest.mark.parametrize(("name", "arguments"), [(name, arguments) for name, (_, arguments) in CHECKS.items()])
@pytest.mark.parametrize("given", [[], ["--fast"], ["--load", "compose"], ["--fast", "programs"]])
def test_a_check_refuses_what_it_does_not_know(deploy: Path, name: str, arguments: str, given: list[str]) -> None:
    check = deploy / name
    assert check.stat().st_mode & stat.S_IXUSR
    done = subprocess.run([check, *given], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"usage: deploy/{name} {arguments}\n")


@pytest.mark.parametrize(("name", "page"), [(name, page) for name, (page, _) in CHECKS.items()])
def test_a_page_says_what_the_check_does_not_prove_in_the_checks_own_words(deploy: Path, name: str, page: str) -> None:
    found = re.search(r"does not prove: (- .*?\.) EOF", _words(deploy / name))
    assert found
    assert found[1] in _words(deploy.parent / "docs" / page)


def test_what_a_check_sources_is_there(deploy: Path) -> None:
    for name in ("check-image.sh", *CHECKS):
        sourced = re.findall(r"^source (deploy/\S+)$", (deploy / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert "deploy/namespaces.sh" in sourced
        assert all((deploy.parent / each).exists() for each in sourced)


def test_the_check_of_compose_starts_all_but_grafana_and_knows_whose_images_it_stands_in_for(deploy: Path) -> None:
    text = (deploy / "compose.yaml").read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    check = (deploy / "check-compose.sh").read_text(encoding="utf-8")
    (started,) = re.findall(r"^services=\((.+)\)$", check, re.MULTILINE)
    assert {*started.split(), "grafana"} == set(services)
    images = [service["image"] for name, service in services.items() if "build" not in service and name != "grafana"]
    patterns = re.findall(r"image: \\\((\S+?)\.\*\\\)", check)
    assert len(patterns) == len(images) == 2
    for pattern in patterns:
        assert len([image for image in images if image.startswith(pattern.replace("\\", ""))]) == 1, pattern


def test_every_block_that_the_check_of_kubernetes_reads_is_in_the_documentation_once(deploy: Path) -> None:
    page = (deploy.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    check = (deploy / "check-kubernetes.sh").read_text(encoding="utf-8")
    marks = re.findall(r'\bdocumented "([^"]+)"', check)
    assert len(set(marks)) >= 5
    for mark in marks:
        assert len(re.findall(rf"^```{re.escape(mark)}$", page, re.MULTILINE)) == 1, mark


def test_the_redis_of_the_check_of_kubernetes_keeps_what_that_of_compose_keeps(deploy: Path) -> None:
    command = yaml.safe_load((deploy / "compose.yaml").read_text(encoding="utf-8"))["services"]["redis"]["command"]
    (said,) = re.findall(r"command: (\[redis-server.*?\])$", _unfolded(deploy / "cluster.sh"), re.MULTILINE)
    assert yaml.safe_load(said) == [*command, "--dir", "/data"]


def _unfolded(path: Path) -> str:
    return re.sub(r",\n +", ", ", path.read_text(encoding="utf-8"))


def test_shellcheck_has_nothing_to_say(deploy: Path) -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not there")
    scripts = sorted(path.relative_to(deploy.parent) for path in deploy.glob("*.sh"))
    assert len(scripts) >= 8
    done = subprocess.run(
        [program, "--external-sources", *scripts], cwd=deploy.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
