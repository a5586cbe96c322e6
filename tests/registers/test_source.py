"""`device_source`: the Python that is written of a register map declares that map, and tools have nothing to say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from random_maps import DOCS, maps

from iobus.registers import (
    RME,
    RW,
    RWME,
    Dimension,
    FieldEntry,
    GroupEntry,
    RegisterEntry,
    RegisterMap,
    W,
)
from iobus.registers.source import class_name, device_source


def run(text: str, name: str = "Made") -> Any:
    names: dict[str, Any] = {"__name__": "made"}
    exec(compile(text, "made.py", "exec"), names)
    return names[name]


@settings(max_examples=150)
@given(maps())
def test_the_class_that_is_written_has_the_map_it_was_written_from(bank: RegisterMap) -> None:
    """Kinds without a name, shared classes, resets, docs, values, arrays: all of it, and the device can be made."""
    made = run(device_source(bank, "Made", "A device."))
    assert made.map == bank
    made().reset()


PLAIN = DOCS.filter(str.isascii)


@settings(max_examples=20)
@given(maps(PLAIN))
def test_formatters_and_linters_have_nothing_to_say(bank: RegisterMap) -> None:
    """ruff's own format and rules, and a few stricter ones, take the text as it is, of descriptions in ASCII."""
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    text = device_source(bank, "Made", "A device.")
    formatted = subprocess.run(
        [ruff, "format", "--isolated", "-"], input=text, capture_output=True, text=True, check=True
    )
    assert formatted.stdout == text
    rules = "--extend-select=I,UP,B,C4,SIM,RET,PIE"
    checked = subprocess.run([ruff, "check", "--isolated", rules, "-"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_what_the_device_must_do_itself_is_a_hook_to_fill_in() -> None:
    """An event, a value that only the device sees and a read with an effect get a method; plain registers do not."""
    fields = (FieldEntry("GO", 0, 1, W, "Starts it. At once."), FieldEntry("EN", 1, 1, RW))
    channel = GroupEntry("CH", 0x10, (RegisterEntry("CTRL", 0, fields=fields),), "", Dimension(2, 8))
    fifo = RegisterEntry("FIFO", 0x20, fields=(FieldEntry("DATA", 0, 8, RME), FieldEntry("LEVEL", 8, 8, RWME)))
    plain = RegisterEntry("MODE", 0, rest=RW)
    text = device_source(RegisterMap("Made", (plain, channel, fifo), 0x24), "Made", "A device.")
    assert (
        "    @on_write(CH.each.CTRL.GO)\n"
        "    def write_ch_ctrl_go(self, index: int, value: int) -> None:\n"
        '        """A guest wrote CH.CTRL.GO: Starts it."""\n'
    ) in text
    assert (
        "    @on_read(FIFO.DATA)\n"
        "    def read_fifo_data(self) -> int:\n"
        '        """A guest reads FIFO.DATA."""\n'
        "        return self.FIFO.DATA\n"
    ) in text
    assert "@on_write(FIFO.LEVEL)" in text
    assert "MODE)" not in text
    made = run(text)()
    made.FIFO.DATA = 5
    assert made.read(0x20, 4) == 5


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("CTRL", "Ctrl"), ("int_status", "IntStatus"), ("DmaEngine", "DmaEngine"), ("64bit", "X64bit"), ("_", "Device"),
     ("None", "NoneDevice")],
)  # fmt: skip
def test_names_of_classes(name: str, wanted: str) -> None:
    """A map's name becomes the name of a class, as Python writes those."""
    assert class_name(name) == wanted


def test_a_field_may_be_called_as_what_is_imported() -> None:
    """A field W of the kind W, a register R and a field `bits` do not hide what the next line needs."""
    names = ("W", "W_", "RW", "bits", "Field", "on_write", "Values", "class")
    fields = tuple(FieldEntry(name, 2 * bit, 2, W) for bit, name in enumerate(names))
    registers = tuple(
        RegisterEntry(name, 4 * at, fields=fields) for at, name in enumerate((*names, "Register", "Ctrl"))
    )
    bank = RegisterMap("RegisterBank", registers, 0x100)
    assert run(device_source(bank, "Made", "A device.")).map == bank
