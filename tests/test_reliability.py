"""docs/reliability.md promises what tests show: every test that it names must exist."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_row_of_the_table_names_tests_that_exist(project_root: Path) -> None:
    text = (project_root / "docs" / "reliability.md").read_text()
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["fault", "what clients see", "lost", "how it recovers", "shown by"]
    assert len(rows) > 20
    tests = "\n".join(path.read_text() for path in (project_root / "tests").rglob("test_*.py"))
    for row in rows[1:]:
        named = re.findall(r"`(test_\w+)`", row[-1])
        assert named, f"no test shows this: {row[0]}"
        for name in named:
            assert re.search(rf"^(async )?def {name}\(", tests, re.MULTILINE), f"{name} does not exist"


def test_the_readme_leads_to_it(project_root: Path) -> None:
    assert "(docs/reliability.md)" in (project_root / "README.md").read_text()
