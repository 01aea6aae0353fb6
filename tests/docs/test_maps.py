"""The maps of deploy/ and of the site name what is there, and nothing is there that they do not name."""

from __future__ import annotations

import re
from pathlib import Path

import yaml


def test_the_map_of_deploy_names_everything_in_it(project_root: Path) -> None:
    folder = project_root / "deploy"
    rows = re.findall(r"^    (\S+)  +(.+)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    there = {f"{each.name}/" if each.is_dir() else each.name for each in folder.iterdir()} - {"README.md"}
    assert {name for name, _ in rows} == there
    for name, rest in rows:
        pages = re.findall(r"docs/[a-z-]+\.md", rest)
        assert pages, name
        assert all((project_root / page).exists() for page in pages), name


def test_every_page_has_its_place_in_the_sites_navigation(project_root: Path) -> None:
    text = (project_root / "mkdocs.yml").read_text(encoding="utf-8")
    named = {page for part in yaml.safe_load(text)["nav"] for each in part.values() for page in _pages(each)}
    assert {page.name for page in (project_root / "docs").glob("*.md")} <= named


def _pages(part: list[dict[str, str]]) -> list[str]:
    return [page for entry in part for page in entry.values()]
