"""What holds for every page of docs/."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_files_are_shown_where_a_page_means_to(page: Path) -> None:
    """A line that shows a file is written as mkdocs reads it; a formatter of Python blocks takes it apart."""
    for line in page.read_text().splitlines():
        if "--8" in line:
            assert line.startswith('--8<-- "'), line
