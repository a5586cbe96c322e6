"""The machine code of the Unicorn engine (stubs.py) is what its assembly source (stubs.s) says.

Assembled anew with the system's binutils by tools/assemble_stubs.py, which also writes stubs.py.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from iobus.engines.unicorn import stubs

ROOT = Path(__file__).parents[2]
SOURCE = Path(stubs.__file__).with_name("stubs.s")


def assembler() -> ModuleType:
    """tools/assemble_stubs.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("assemble_stubs", ROOT / "tools" / "assemble_stubs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs_binutils() -> None:
    missing = [tool for tool in ("as", "objcopy", "nm") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: binutils)")


def test_the_code_is_the_assembled_source() -> None:
    """Byte for byte, and its entries are at the source's labels."""
    needs_binutils()
    code, entries = assembler().assemble(SOURCE)
    assert code == stubs.CODE
    assert entries == stubs.ENTRIES


def test_a_change_of_the_source_would_be_seen(tmp_path: Path) -> None:
    """One other instruction makes other bytes."""
    needs_binutils()
    changed = tmp_path / "stubs.s"
    changed.write_text(SOURCE.read_text().replace("mov     eax, 1\n", "mov     eax, 2\n", 1))
    code, _ = assembler().assemble(changed)
    assert code != stubs.CODE


def test_the_tables_slots_are_where_the_source_has_them() -> None:
    """Each field of `Table` is 8 bytes, and the constants of the source count through them in the same order."""
    text = SOURCE.read_text()
    section = text[text.index("# struct Table") : text.index("# CPUTLBEntry")]
    constants = {name: int(value, 16) for name, value in re.findall(r"\.set (\w+), (0x\w+)", section)}
    # What a register is called cannot be the name of a constant.
    fields = {name.upper(): getattr(stubs.Table, name).offset for name, *_ in stubs.Table._fields_}
    assert {name.removesuffix("_AT"): value for name, value in constants.items()} == fields
    assert {getattr(stubs.Table, name).size for name, *_ in stubs.Table._fields_} == {8}
