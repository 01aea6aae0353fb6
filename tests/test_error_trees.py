"""The trees of errors, as docstrings draw them and as classes are derived."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BRANCH = re.compile(r"^((?:[│ ]   )*)[├└]── (\w+)", re.MULTILINE)
MODULES = [
    path
    for root in ("profiles_store", "server", "tuning")
    for path in sorted((ROOT / root).rglob("*errors.py"))
    if "├──" in path.read_text(encoding="utf-8")
]


def drawn(docstring: str) -> dict[str, str]:
    """Name → its parent's; the root stands in the line before the first branch."""
    ancestors = docstring.partition("\n├")[0].splitlines()[-1].split()[:1]
    parents = {}
    for prefix, name in BRANCH.findall(docstring):
        depth = len(prefix) // 4 + 1
        ancestors[depth:] = [name]
        parents[name] = ancestors[depth - 1]
    return parents


def derived(module: ast.Module) -> dict[str, str]:
    """Class → what it is derived from, where that is a class of the module, too."""
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    bases = {name: node.bases[0] for name, node in classes.items()}
    return {name: base.id for name, base in bases.items() if isinstance(base, ast.Name) and base.id in classes}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_tree_of_errors_is_drawn_as_its_classes_are_derived(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert drawn(ast.get_docstring(module) or "") == derived(module)


def test_trees_are_found() -> None:
    assert len(MODULES) >= 7
