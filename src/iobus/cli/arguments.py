"""Arguments that several commands share: sizes, engines, and the devices of `--device`.

`FILE.py:CLASS@ADDR[:LENGTH][,NAME=VALUE...]` loads a Python file, makes a CLASS with the values as keyword
arguments and attaches it. Whatever is wrong with it is one sentence in a `UsageError`.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iobus.bus import Bus, IobusError
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.pc.pc import Pc

ENGINES = ("auto", "unicorn")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class UsageError(IobusError):
    """What the user gave cannot be: one sentence that names it and what would be right."""


def number(text: str) -> int:
    """Return a decimal or 0x number with an optional suffix K, M or G. Raises `ValueError`."""
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|\d+)([KMG]?)", text)
    if match is None:
        raise ValueError(f"{text!r} is no number: give one like 4096, 0x1000 or 4K")
    return int(match[1], 0) * _UNITS[match[2]]


def size(text: str) -> int:
    """Return a size in bytes, for argparse."""
    try:
        return number(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def make_pc(memory: int, engine: str | None, console: Any = None) -> Pc:
    """Return a PC on the named engine, or without a CPU. Raises `UsageError`."""
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}: use one of {', '.join(ENGINES)}")
    try:
        return Pc(None if engine is None else UnicornEngine(), memory=memory, console=console or (lambda _: None))
    except ValueError as exc:
        raise UsageError(f"--memory: {exc}") from exc


@dataclass(frozen=True)
class DeviceSpec:
    """A parsed `--device`."""

    text: str
    path: Path
    class_name: str
    base: int
    length: int | None
    arguments: dict[str, object]

    @classmethod
    def parse(cls, text: str) -> DeviceSpec:
        """Raises `UsageError`."""
        match = re.fullmatch(r"(.+):([A-Za-z_]\w*)@([^:,]+)(?::([^,]+))?((?:,[^,=]+=[^,]*)*)", text)
        if match is None:
            raise UsageError(f"--device {text}: give FILE.py:CLASS@ADDR[:LENGTH][,NAME=VALUE...]")
        path, class_name, base, length, pairs = match.groups()
        try:
            arguments = dict(pair.split("=", 1) for pair in pairs.split(",") if pair)
            return cls(
                text, Path(path), class_name, number(base), number(length) if length else None,
                {name: _value(value) for name, value in arguments.items()},
            )  # fmt: skip
        except ValueError as exc:
            raise UsageError(f"--device {text}: {exc}") from exc

    def make(self) -> Any:
        """Load the file and return a new device. Raises `UsageError`."""
        if not self.path.is_file():
            raise UsageError(f"--device {self.text}: there is no file {self.path}")
        name = f"iobus_device_{self.path.stem}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None or spec.loader is None:
            raise UsageError(f"--device {self.text}: {self.path} is no Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        sys.path.insert(0, str(self.path.parent.resolve()))  # so that it can import its neighbours
        try:
            spec.loader.exec_module(module)
        except Exception as exc:
            raise UsageError(f"--device {self.text}: {self.path} fails with {type(exc).__name__}: {exc}") from exc
        finally:
            sys.path.pop(0)
        kind = getattr(module, self.class_name, None)
        if not isinstance(kind, type):
            raise UsageError(f"--device {self.text}: {self.path} has no class {self.class_name}")
        for method in ("read", "write"):
            if not callable(getattr(kind, method, None)):
                raise UsageError(
                    f"--device {self.text}: {self.class_name} is no device: it has no method {method!r}; "
                    "a device defines read(offset, size) and write(offset, size, value)"
                )
        try:
            return kind(**self.arguments)
        except Exception as exc:
            raise UsageError(f"--device {self.text}: {self.class_name}(...): {type(exc).__name__}: {exc}") from exc


def attach_devices(pc: Pc, texts: list[str]) -> None:
    """Make and attach every device. Raises `UsageError`, also where one would overlap what is fixed."""
    for spec in [DeviceSpec.parse(text) for text in texts]:
        device = spec.make()
        length = spec.length if spec.length is not None else getattr(device, "length", None)
        if not isinstance(length, int) or length <= 0:
            raise UsageError(
                f"--device {spec.text}: {spec.class_name} has no length; write {spec.class_name}@{spec.base:#x}:LENGTH"
            )
        _must_be_free(pc, spec, length)
        pc.attach(device, spec.base, length)


def _must_be_free(pc: Pc, spec: DeviceSpec, length: int) -> None:
    end = spec.base + length
    taken = [(slot.base, slot.base + slot.size, "RAM") for slot in pc.machine.memory.slots]
    buses: list[Bus] = [pc.machine.mmio, *(vcpu.mmio for vcpu in pc.machine.vcpus)]
    taken += [(r.base, r.base + r.length, r.name) for bus in buses for r in bus.regions if r.in_range is None]
    for start, stop, name in taken:
        if spec.base < stop and start < end:
            raise UsageError(
                f"--device {spec.text}: [{spec.base:#x}, {end:#x}) overlaps {name} at [{start:#x}, {stop:#x}); "
                "addresses from 0xc0000000 to 0xfec00000 are free"
            )


def _value(text: str) -> object:
    try:
        return number(text)
    except ValueError:
        return {"true": True, "false": False}.get(text, text)
