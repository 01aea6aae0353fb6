"""The site as `make docs` builds it: whole, with what the program has, and with nothing of another host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import pytest
import typer

from xpeft_server.api.access.table import ACCESS
from xpeft_server.cli.main import app
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings_source import describe_settings

# What a browser fetches by itself, and the attribute that says from where.
FETCHED: Final = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class Document(HTMLParser):
    """``fetched``: what is loaded with the page; ``links``: what can be clicked; ``ids``: what links may lead to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        there = {name: value for name, value in attrs if value is not None}
        if tag in FETCHED and FETCHED[tag] in there and there.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(there[FETCHED[tag]])
        if tag == "a" and "href" in there:
            self.links.append(there["href"])
        if "id" in there:
            self.ids.add(there["id"])

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: what is not logged is not counted, and nothing is strict.
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=project_root, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Document]:
    """Path in the site → page."""
    return {str(file.relative_to(site)): Document(file) for file in sorted(site.rglob("*.html"))}


def test_make_builds_it_as_strictly_as_this_test(project_root: Path) -> None:
    planned = subprocess.run(
        ["make", "-n", "docs"], cwd=project_root, capture_output=True, text=True, check=True
    ).stdout
    (build,) = [line.split() for line in planned.splitlines() if "bin/mkdocs build" in line]
    assert "--strict" in build
    assert not {"--quiet", "-q"} & set(build)


def test_no_page_fetches_anything_from_another_host(site: Path, pages: dict[str, Document]) -> None:
    foreign = [(name, url) for name, page in pages.items() for url in page.fetched if urlsplit(url).netloc]
    assert foreign == []
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", text) == [], style.name
    # The theme's script loads Mermaid and MathJax from elsewhere, for pages that have something for them.
    assert not [file for file in site.rglob("*.html") if re.search(r'class="(mermaid|arithmatex)', file.read_text())]


def test_every_link_within_the_site_leads_somewhere(site: Path, pages: dict[str, Document]) -> None:
    broken = []
    for name, page in pages.items():
        for link in {*page.links, *page.fetched}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or name == "404.html":
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            target = (target / "index.html" if target.is_dir() else target).resolve()
            if not target.is_file():
                broken.append((name, link))
            elif parts.fragment and target.suffix == ".html":
                ids = pages[str(target.relative_to(site.resolve()))].ids
                broken += [(name, link)] if unquote(parts.fragment) not in ids else []
    assert broken == []


def test_every_setting_has_its_place(pages: dict[str, Document]) -> None:
    page = pages["settings/index.html"]
    assert {each.option[2:] for each in describe_settings()} <= page.ids
    assert {each.variable for each in describe_settings()} <= set(page.text)


def test_every_route_has_its_place_and_its_key(pages: dict[str, Document]) -> None:
    page = pages["api/index.html"]
    headings = {text.strip() for text in page.text}
    for path, methods in ACCESS.items():
        for method in methods:
            if method != "HEAD" and path != "/openapi.json":
                assert f"{method} {path}" in headings


def test_every_type_of_the_api_has_its_place(site: Path, pages: dict[str, Document]) -> None:
    document = json.loads((site / "openapi.json").read_text(encoding="utf-8"))
    names = {name.lower() for name in document["components"]["schemas"]}
    assert len(names) > 20
    assert names <= pages["api/index.html"].ids


def test_every_family_of_metrics_has_its_place(pages: dict[str, Document]) -> None:
    shown = re.findall(r"^# TYPE (\S+)", Metrics().render().decode(), re.MULTILINE)
    assert len(shown) > 20
    assert set(shown) <= pages["metrics/index.html"].ids


def test_every_command_has_its_place_and_every_option_is_named(pages: dict[str, Document]) -> None:
    page = pages["cli/index.html"]
    words = {word for text in page.text for word in re.findall(r"--[a-z][a-z0-9-]*", text)}
    settings = {each.option for each in describe_settings()}

    def check(path: str, command: object) -> None:
        below = getattr(command, "commands", {})
        for name, each in below.items():
            check(f"{path} {name}", each)
        if not below:
            assert path.replace(" ", "-") in page.ids, path
            options = {option for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
            assert {option for option in options if option.startswith("--")} - settings <= words, path

    check("xpeft", typer.main.get_command(app))


def test_the_search_finds_what_is_made_from_the_program(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    text = " ".join(each["text"] for each in index["docs"])
    for word in ("--queue-seconds", "xpeft_refusals_total", "ClassifyReplyBody", "--mask-spread"):
        assert word in text


def test_the_readmes_sections_keep_their_blocks(site: Path) -> None:
    page = (site / "quick-start" / "index.html").read_text(encoding="utf-8")
    assert re.search(r"<pre>.{0,40}<code>make demo ", page, re.DOTALL)
    assert "xpeft profiles import profiles.jsonl.gz" in page


def test_a_page_that_the_site_fills_in_says_so_where_it_is_not(project_root: Path) -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in (project_root / "docs").glob("*.md")}
    # The first sentence of api.md says where a server has all of it.
    filled = {name: text for name, text in pages.items() if "<!-- here: " in text and name != "api.md"}
    assert len(filled) > 5
    note = re.compile(r"^#+ .+\n\n> In the source .+ not filled in; `make docs` does that\.", re.MULTILINE)
    assert [name for name, text in filled.items() if not note.search(text)] == []


def test_the_site_does_not_say_that_it_is_not_filled_in(pages: dict[str, Document]) -> None:
    assert [name for name, page in pages.items() if "In the source" in " ".join(page.text)] == []


def test_what_a_block_needs_is_said_in_words(pages: dict[str, Document]) -> None:
    said = {text for page in pages.values() for text in page.text}
    assert {"Leave it running", "Needs Docker"} <= said
    source = " ".join(said)
    assert "```" not in source
    assert "<!-- here:" not in source
