"""docs/ray.md and deploy/ray/serve.yaml say what the application takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from xpeft_ray import application
from xpeft_ray.options import Scale, read_options


@pytest.fixture(scope="module")
def page(project_root: Path) -> str:
    return (project_root / "docs" / "ray.md").read_text(encoding="utf-8")


def test_serve_takes_every_file_that_is_shown_and_the_application_its_arguments(page: str, project_root: Path) -> None:
    files = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    files.append((project_root / "deploy" / "ray" / "serve.yaml").read_text(encoding="utf-8"))
    for text in files:
        config: Any = yaml.safe_load(text)
        ServeDeploySchema.model_validate(config)
        (served,) = config["applications"]
        module, _, function = served["import_path"].partition(":")
        assert (module, callable(getattr(application, function))) == (application.__name__, True)
        read_options(served["args"], {})
        assert {each["name"] for each in served.get("deployments", [])} <= {"engine", "ingress"}


def test_the_table_names_every_argument_with_its_default(page: str) -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ((?:`\w+`(?:, )?)+) \|", page, re.MULTILINE)
    said: dict[str, str] = {}
    for names, defaults in rows:
        said.update(zip(_words(names), _words(defaults), strict=True))
    assert said == {name: f"{field.default:g}" for name, field in Scale.model_fields.items()}


def _words(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_every_test_that_the_page_names_exists(page: str, project_root: Path) -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (project_root / "tests" / "deploy").rglob("*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) >= 4
    assert [name for name in named if not re.search(rf"^(async )?def {name}\(", tests, re.MULTILINE)] == []
