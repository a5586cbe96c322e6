"""The examples: short, and each shown in the docs as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text() for page in (ROOT / "docs").glob("*.md")}
EXAMPLES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "examples").rglob("*")
    if path.suffix in (".py", ".c") and path.name != "test_examples.py"
)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_is_short_and_shown(example: Path) -> None:
    """Less than 150 lines, and on a page: included, or its whole text."""
    text = (ROOT / example).read_text()
    assert len(text.splitlines()) < 150
    included = [name for name, page in PAGES.items() if f'--8<-- "{example}"' in page or text in page]
    named = [name for name, page in PAGES.items() if re.search(rf"\b{re.escape(example.name)}\b", page)]
    assert included or named, f"{example} is on no page"
