"""Who may import what, in one table, kept by reading every module's syntax tree."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = ("kernels", "profiles_store", "server", "tuning", "benchmarks", "deploy/ray")
EVERYTHING = None
WEB = ("fastapi", "starlette", "uvicorn")
DEVICE = ("torch", "triton", "transformers", "xpeft_kernels", "xpeft_server.model")
SERVING = ("xpeft_server.engine", "xpeft_server.api", "xpeft_server.jobs")
TOP = ("xpeft_server.cli", "xpeft_benchmarks", "xpeft_quality", "xpeft_ray")
TUNING = ("xpeft_tuning",)
ABOVE = ("xpeft_server.remote", *TUNING, *TOP)


class Layer(NamedTuple):
    """A package with all that lies below it, but for what has a row of its own. Its own modules are always allowed."""

    package: str
    may: tuple[str, ...] | None
    never: tuple[str, ...] = ()


# fmt: off
LAYERS = (
    # package                     may import (besides the standard library)  never imports
    Layer("xpeft_kernels",        ("torch", "triton", "numpy")),
    Layer("xpeft_profiles",       ("numpy", "redis", "safetensors"),         ("torch",)),
    Layer("xpeft_server",         ("pydantic",)),
    Layer("xpeft_server.model",   ("torch", "triton", "numpy", "safetensors",
                                   "transformers", "tokenizers", "jinja2",
                                   "huggingface_hub",
                                   "xpeft_kernels", "xpeft_profiles",
                                   "xpeft_server.output_file")),
    Layer("xpeft_server.engine",  EVERYTHING,                                (*WEB, "xpeft_server.api", *ABOVE,
                                                                              "xpeft_server.jobs")),
    Layer("xpeft_server.jobs",    EVERYTHING,                                (*WEB, *DEVICE, "xpeft_server.api",
                                                                              *ABOVE)),
    Layer("xpeft_server.api",     EVERYTHING,                                (*DEVICE, *ABOVE)),
    Layer("xpeft_server.remote",  EVERYTHING,                                (*WEB, *DEVICE, *TUNING, *TOP)),
    Layer("xpeft_server.cli",     EVERYTHING),
    Layer("xpeft_tuning",         EVERYTHING,                                (*WEB, *SERVING, *TOP)),
    Layer("xpeft_benchmarks",     EVERYTHING,                                (*TUNING, "xpeft_server.cli")),
    Layer("xpeft_quality",        EVERYTHING,                                ("xpeft_server.cli",)),
    Layer("xpeft_ray",            EVERYTHING,                                (*TUNING, "xpeft_benchmarks",
                                                                              "xpeft_quality")),
    Layer("",                     EVERYTHING),  # programs that lie in a source root itself
)
# fmt: on
# Between engine, jobs and api: plain values only. What else a lower one has comes through the constructor.
PLAIN_VALUES = {
    "xpeft_server.engine": ("requests", "errors", "metrics"),
    "xpeft_server.jobs": ("requests", "errors"),
}
TAKE_PLAIN_VALUES = ("xpeft_server.api", "xpeft_server.jobs")
WITHOUT_TORCH = ("xpeft_profiles", "xpeft_server.api", "xpeft_server.jobs", "xpeft_server.remote")


class Import(NamedTuple):
    """``target`` is the whole dotted name, with the imported name at its end; ``level`` counts the leading dots."""

    target: str
    level: int
    line: int


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _imports(source: str, package: str) -> Iterator[Import]:
    """Every import of a module that lies in ``package``, relative ones made absolute."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, 0, node.lineno)
            case ast.ImportFrom(module=module, names=names, level=level):
                ancestors = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                origin = ".".join([*ancestors, *([module] if module else [])])
                for alias in names:
                    yield Import(origin if alias.name == "*" else f"{origin}.{alias.name}", level, node.lineno)
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
            ):
                if called in {"import_module", "__import__"}:
                    yield Import(name, 0, node.lineno)


def _layer(package: str) -> Layer:
    return max((layer for layer in LAYERS if _within(package, layer.package)), key=lambda layer: len(layer.package))


def violations(source: str, package: str) -> list[str]:
    """What is wrong with the imports of a module in ``package``, a sentence each."""
    layer = _layer(package)
    found = []
    for target, level, line in _imports(source, package):
        own = _within(target, layer.package) and _layer(target).package == layer.package
        forbidden = [name for name in layer.never if _within(target, name)]
        allowed = layer.may is EVERYTHING or any(_within(target, name) for name in layer.may)
        if forbidden:
            found.append(f"line {line}: {layer.package} never imports {forbidden[0]}")
        elif not own and not allowed and target.split(".")[0] not in sys.stdlib_module_names:
            found.append(f"line {line}: {target} is not among what {layer.package} may import")
        if own and level == 0:
            found.append(f"line {line}: {target} lies in {layer.package} too: import it relatively")
        if level and not own:
            found.append(f"line {line}: {target} lies outside {layer.package}: import it absolutely")
        if layer.package in TAKE_PLAIN_VALUES and not own and not _plain_values(target):
            found.append(f"line {line}: {layer.package} takes only plain values, not {target}")
    return found


def _plain_values(target: str) -> bool:
    return all(
        any(_within(target, f"{package}.{module}") for module in modules)
        for package, modules in PLAIN_VALUES.items()
        if _within(target, package)
    )


def _modules() -> dict[str, tuple[Path, str]]:
    """Path in the project -> (file, the package that it lies in)."""
    return {
        str(path.relative_to(ROOT)): (path, ".".join(path.relative_to(ROOT / root).parts[:-1]))
        for root in SOURCE_ROOTS
        for path in sorted((ROOT / root).rglob("*.py"))
    }


MODULES = _modules()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    path, package = MODULES[module]
    assert violations(path.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("xpeft_kernels", "import transformers"),
        ("xpeft_kernels", "from xpeft_profiles import Profile"),
        ("xpeft_profiles", "import torch"),
        ("xpeft_profiles", "def load():\n    from safetensors.torch import load\n    from torch import Tensor"),
        ("xpeft_profiles", "import orjson"),
        ("xpeft_profiles", "from importlib import import_module\nimport_module('torch.nn')"),
        ("xpeft_server", "import torch"),
        ("xpeft_server", "from .model import bank"),
        ("xpeft_server.model", "from fastapi import FastAPI"),
        ("xpeft_server.model", "from xpeft_server.engine.requests import TextInput"),
        ("xpeft_server.engine", "import starlette.responses"),
        ("xpeft_server.engine", "from xpeft_server import api"),
        ("xpeft_server.engine", "from xpeft_tuning.tuner import Tuner"),
        ("xpeft_server.api", "import torch.nn as nn"),
        ("xpeft_server.api", "if TYPE_CHECKING:\n    from transformers import PreTrainedModel"),
        ("xpeft_server.api", "import xpeft_kernels"),
        ("xpeft_server.api", "from xpeft_server.model.banks.bank import Bank"),
        ("xpeft_server.api", "from xpeft_server import model"),
        ("xpeft_server.api", "from xpeft_server.engine.engine import Engine"),
        ("xpeft_server.api", "from xpeft_server import engine"),
        ("xpeft_server.api", "from xpeft_server.jobs.tuner import Tuner"),
        ("xpeft_server.api", "from xpeft_tuning.settings import TuningSettings"),
        ("xpeft_server.engine", "from xpeft_server.jobs.requests import TuningRequest"),
        ("xpeft_server.jobs", "from starlette.requests import Request"),
        ("xpeft_server.jobs", "from xpeft_server.api.errors import ApiError"),
        ("xpeft_server.jobs", "from xpeft_server.cli.serve.worker_process import WorkerProcess"),
        ("xpeft_server.jobs", "from xpeft_server.engine.engine import Engine"),
        ("xpeft_server.jobs", "import torch"),
        ("xpeft_server.jobs", "from xpeft_tuning.settings import TuningSettings"),
        ("xpeft_server.api", "from xpeft_server.api.errors import envelope"),
        ("xpeft_server.api", "from ..settings import Settings"),
        ("xpeft_server.cli", "from xpeft_server.cli.screen import console"),
        ("xpeft_tuning", "from xpeft_server.api.app import create_app"),
        ("xpeft_tuning", "import xpeft_benchmarks"),
        ("xpeft_benchmarks", "from xpeft_server.cli.main import app"),
        ("xpeft_ray", "from xpeft_tuning.settings import TuningSettings"),
        ("xpeft_server.api", "from xpeft_ray.door import Door"),
        ("xpeft_server.api", "from xpeft_server.remote.peer import Peer"),
        ("xpeft_server.remote", "from xpeft_server.model.banks.bank import Bank"),
        ("xpeft_server.remote", "from starlette.types import Scope"),
    ],
)
def test_a_forbidden_import_is_found(package: str, source: str) -> None:
    assert violations(source, package) != []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("xpeft_kernels", "from __future__ import annotations\nimport math\nimport torch\nfrom .dispatch import Impl"),
        (
            "xpeft_profiles",
            "import redis.asyncio\nfrom safetensors.numpy import load\nfrom .errors import ProfileInvalid",
        ),
        ("xpeft_profiles.stores", "from ..errors import StoreUnavailable\nfrom .keys import key"),
        ("xpeft_server.model", "from transformers import AutoModel\nfrom xpeft_kernels import apply_adapters"),
        ("xpeft_server.engine", "from xpeft_server.model.banks.bank import Bank\nimport prometheus_client"),
        (
            "xpeft_server.api",
            "from xpeft_server.engine.requests import TextInput\nfrom xpeft_server.settings import Settings",
        ),
        ("xpeft_server.api", "import fastapi\nfrom .engine_port import EnginePort"),
        ("xpeft_server.api", "from xpeft_server.jobs.requests import TuningRequest"),
        ("xpeft_server.jobs", "from xpeft_server.engine.metrics import Metrics\nfrom .job import Job"),
        ("xpeft_server.remote", "from xpeft_server.api.engine_port import EnginePort\nfrom .peer import Peer"),
        ("xpeft_server.cli", "import torch, fastapi, xpeft_tuning, xpeft_benchmarks"),
    ],
)
def test_an_allowed_import_is_not_complained_about(package: str, source: str) -> None:
    assert violations(source, package) == []


def test_every_layer_is_a_folder_and_every_module_lies_in_a_layer() -> None:
    packages = {package for _, package in MODULES.values()}
    assert {layer.package for layer in LAYERS} <= packages
    assert all(_layer(package) for package in packages)


def test_packages_that_never_import_torch_load_where_torch_is_not_installed() -> None:
    modules = [
        ".".join([package, *([] if path.stem == "__init__" else [path.stem])])
        for path, package in MODULES.values()
        if any(_within(package, each) for each in WITHOUT_TORCH)
    ]
    program = "import importlib, sys\nsys.modules['torch'] = None\n" + "\n".join(
        f"importlib.import_module({module!r})" for module in modules
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_source_root_is_itself_a_package() -> None:
    assert [root for root in SOURCE_ROOTS if (ROOT / root / "__init__.py").exists()] == []


def test_no_folder_of_tests_is_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_pytest_puts_no_folder_on_the_search_path(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getoption("importmode") == "importlib"


def test_transformers_is_not_confused_by_a_folder_named_kernels() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import transformers, transformers.integrations.hub_kernels\n"
        "from transformers import AutoModel, BertConfig, BertModel\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "too_old", "oldest"), [("transformers", "5.10.9", "5.11"), ("torch", "2.10.9", "2.11")]
)
def test_releases_that_do_not_work_are_ruled_out(name: str, too_old: str, oldest: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = next(r for r in map(Requirement, project["dependencies"]) if r.name == name)
    assert Version(oldest) in wanted.specifier
    assert Version(too_old) not in wanted.specifier
