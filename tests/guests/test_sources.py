"""The guests' bytes (.hex) are what their sources (.s) say, assembled anew by tools/assemble_guests.py."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest


def assembler() -> ModuleType:
    """tools/assemble_guests.py, which is no module of a package."""
    place = Path(__file__).parents[2] / "tools" / "assemble_guests.py"
    spec = importlib.util.spec_from_file_location("assemble_guests", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCES: list[Path] = assembler().sources()


@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_the_bytes_are_the_assembled_source(source: Path) -> None:
    """Byte for byte, with the same symbols; run the tool after a change."""
    missing = [tool for tool in ("as", "ld", "objcopy", "nm") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: binutils)")
    assert source.with_suffix(".hex").read_text() == assembler().assemble(source)
