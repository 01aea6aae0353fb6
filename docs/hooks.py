"""MkDocs' hooks: fill in what is made from the program, and fit the repository's Markdown to the site."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from xpeft_docs import commands, http_api, metrics, readme, settings, throughput
from xpeft_docs.fences import told_fences
from xpeft_docs.repository_links import RepositoryLinks

ROOT: Final = Path(__file__).resolve().parent.parent
# Pages that lie beside the code they are about.
BESIDE: Final[Mapping[str, str]] = {
    "tuning/README.md": "how-tuning-works.md",
    "kernels/README.md": "kernels.md",
    "benchmarks/README.md": "benchmark-commands.md",
}
# Sections of the README, and the page that has them.
SECTIONS: Final[Mapping[str, str]] = {
    "Two commands": "quick-start.md",
    "Use it": "quick-start.md",
    "The idea in three equations": "idea.md",
    "What you can rely on": "idea.md",
    "Numbers": "numbers.md",
    "Known limits": "numbers.md",
}
GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "settings": settings.settings_table,
    "commands": commands.commands,
    "metrics": metrics.metrics_table,
    "throughput": throughput.throughput_table,
    "routes-table": http_api.routes_table,
    "routes": http_api.routes,
    "schemas": http_api.schemas,
    "errors": http_api.errors_table,
    **{title: partial(readme.section, ROOT / "README.md", title) for title in SECTIONS},
}
_MARKER: Final = re.compile(r"^<!-- here: (.+) -->$", re.MULTILINE)
# What a page says to those who read it where nothing is filled in.
_TO_READERS_OF_THE_SOURCE: Final = re.compile(r"^> In the source .*\n(?:> .*\n)*\n", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    document = json.dumps(http_api.openapi_document(), indent=1)
    files.append(File.generated(config, "openapi.json", content=document))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    del config
    here = page.file.src_uri
    links = RepositoryLinks(ROOT, _pages(files))
    source = next((source for source, name in BESIDE.items() if name == here), f"docs/{here}")
    markdown = links.resolved(_TO_READERS_OF_THE_SOURCE.sub("", markdown), source=source, page=here)

    def filled(found: re.Match[str]) -> str:
        text = GENERATED[found[1]]()
        return links.resolved(text, source="README.md", page=here) if found[1] in SECTIONS else text

    return told_fences(_MARKER.sub(filled, markdown))


def _pages(files: Files) -> dict[str, str]:
    """Path in the repository → path in the site."""
    own = {f"docs/{file.src_uri}": file.src_uri for file in files.documentation_pages()}
    parts = {f"README.md#{_anchor(title)}": f"{page}#{_anchor(title)}" for title, page in SECTIONS.items()}
    return {**own, **BESIDE, **parts, "README.md": "index.md"}


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
