"""What docs/register-maps.md shows works."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from iobus.pc.pc import Pc
from iobus.registers import from_systemrdl, to_systemrdl
from iobus.testing import Bench

pytest.importorskip("systemrdl", reason="systemrdl-compiler is not installed")

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "register-maps.md").read_text()


def block(title: str) -> str:
    found = re.search(rf'```\w+ title="{title}"\n(.*?)```', DOCS, re.DOTALL)
    assert found is not None
    return found[1]


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["gpio.py", "gpio.rdl"])
def test_the_page_shows_the_example(name: str) -> None:
    """What is on the page is the example."""
    assert block(name) == (ROOT / "examples" / name).read_text()


def test_the_pages_test_passes(monkeypatch: pytest.MonkeyPatch, bus: Bench) -> None:
    """The test that the page shows is one, and passes."""
    example("gpio", monkeypatch)
    names: dict[str, object] = {}
    exec(block("test_gpio.py"), names)
    names["test_a_rising_input_interrupts_until_it_is_cleared"](bus)  # type: ignore[operator]


def test_outputs_show_on_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command changes the outputs, of which INPUT shows those that are driven; on a PC it has interrupt 10."""
    pc, gpio = Pc(), example("gpio", monkeypatch).Gpio()
    pc.attach(gpio, 0xD0000000)
    bus = pc.machine.mmio
    bus.write(0xD0000000, 4, 0x3C)
    bus.write(0xD0000014, 4, 1)
    assert (bus.read(0xD0000004, 4), bus.read(0xD0000008, 4)) == (0xFF, 0x3C)
    bus.write(0xD0000014, 4, 2)
    assert (bus.read(0xD0000004, 4), bus.read(0xD0000008, 4)) == (0, 0)
    bus.write(0xD0000010, 4, 0x80)
    gpio.drive(0x80)
    assert gpio.irq.level


def test_the_export_is_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """`to_systemrdl(Doorbell)`, and that it is the same map when it is read again."""
    doorbell = example("doorbell", monkeypatch).Doorbell
    assert f">>> print(to_systemrdl(Doorbell))\n{to_systemrdl(doorbell)}>>>" in DOCS
    assert from_systemrdl(to_systemrdl(doorbell)).map == doorbell.map
