"""What docs/registers.md shows works, and its types are as an editor needs them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from iobus.pc.pc import Pc

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "registers.md").read_text()


def block(title: str) -> str:
    """The code block of the page with this title."""
    found = re.search(rf'```python title="{title}"\n(.*?)```', DOCS, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def doorbell(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("doorbell", ROOT / "examples" / "doorbell.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "doorbell", module)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_example(doorbell: ModuleType) -> None:
    """The device on the page is examples/doorbell.py: two registers and an interrupt in less than 30 lines of code."""
    shown = block("doorbell.py")
    assert shown == (ROOT / "examples" / "doorbell.py").read_text()
    assert len([line for line in shown.splitlines() if line.strip()]) < 30


def test_the_pages_test_passes(doorbell: ModuleType) -> None:
    """What the page shows as the test of the device is one, and passes."""
    names: dict[str, object] = {}
    exec(block("test_doorbell.py"), names)
    tests = [item for name, item in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()  # type: ignore[operator]


def test_the_page_shows_what_is_printed(doorbell: ModuleType) -> None:
    """`print(bell)` and `describe` give the text that the page shows."""
    bell = doorbell.Doorbell()
    bell.write(0, 4, 0b11)
    bell.write(4, 4, 1)
    assert str(bell) in DOCS
    for part in doorbell.Doorbell.describe(0x0, 8, 0x1_00000003, is_write=True):
        assert f"\n{part}\n" in DOCS


def test_the_pc_gives_the_example_its_interrupt(doorbell: ModuleType) -> None:
    """On a PC the bell's line is interrupt 10, which both controllers see."""
    pc = Pc()
    bell = doorbell.Doorbell()
    pc.attach(bell, 0xD0000000)
    pc.machine.mmio.write(0xD0000000, 4, 0b11)
    assert bell.irq.level
    assert pc.pins[10].level
    pc.machine.mmio.write(0xD0000004, 4, 1)
    assert not pc.pins[10].level


TYPED = """
from dataclasses import dataclass
from iobus.registers import RW, Array, BankState, Field, Register, RegisterBank, RegisterGroup, bits, on_read, on_write

class Control(Register):
    ENABLE = Field(0, RW)
    MODE = Field(bits(2, 1), RW)

class Channel(RegisterGroup):
    CTRL = Control(0x0)

@dataclass
class TimerState(BankState):
    starts: int = 0

class Timer(RegisterBank[TimerState]):
    CTRL = Control(0x0)
    CHANNEL = Channel.array(0x100, 8, stride=0x20)

    @on_write(CTRL.ENABLE)
    def enabled(self, value: int, old: int) -> None:
        self.state.starts += value

    @on_read(CHANNEL.each.CTRL)
    def control(self, index: int) -> int:
        return index

class Plain(RegisterBank):
    CTRL = Control(0x0)

timer = Timer()
timer.CTRL.MODE = 2
reveal_type(timer.CTRL)  # Control
reveal_type(timer.CTRL.ENABLE)  # int
reveal_type(timer.CTRL.value)  # int
reveal_type(timer.CHANNEL)  # Array[Channel]
reveal_type(timer.CHANNEL[3].CTRL.MODE)  # int
reveal_type(timer.state)  # TimerState
reveal_type(timer.state.registers)  # list[int]
reveal_type(timer.enabled)  # def (value: int, old: int)
reveal_type(Plain().state)  # BankState
reveal_type([channel.CTRL for channel in timer.CHANNEL])  # list[Control]
timer.CTRL.ENABEL  # error: "Control" has no attribute "ENABEL"; maybe "ENABLE"?
timer.CTRL.ENABLE = "on"  # error: Incompatible types in assignment (expression has type "str", variable has type "int")
timer.CTRL = 5  # error: Incompatible types in assignment (expression has type "int", variable has type "Control")
Control(0x0, resets=5)  # error: Unexpected keyword argument "resets" for "Control"
"""


def test_a_checker_knows_registers_and_fields(tmp_path: Path) -> None:
    """`mypy --strict` sees through to the field: what is completed is there, and what is not there is an error."""
    pytest.importorskip("mypy")
    file = tmp_path / "typed.py"
    file.write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(file)],
        capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT / "src")},
    )  # fmt: skip
    said: dict[int, str] = {}
    for number, text in re.findall(r"typed\.py:(\d+): (.*)", done.stdout):
        said.setdefault(int(number), text)
    wanted = {number: line.split("  # ")[1] for number, line in enumerate(TYPED.split("\n"), 1) if "  # " in line}
    assert said.keys() == wanted.keys(), done.stdout + done.stderr
    for number, text in wanted.items():
        if text.startswith("error: "):
            assert said[number].startswith(text), said[number]
        else:
            revealed = re.sub(r"\b(\w+\.)+(?=\w)", "", said[number])  # without the modules' names
            assert revealed == f'note: Revealed type is "{text}"'
