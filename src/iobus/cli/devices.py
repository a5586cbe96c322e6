"""`--device FILE.py:CLASS@ADDR[:LENGTH][,NAME=VALUE...]`: a user's device, from its file onto the bus.

`DeviceSpec.parse` reads the option, `make` imports the file and makes the device, `attach` puts it on a
PC's bus. Whatever is wrong is a `UsageError`: nothing of a user's file is trusted to be right.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from iobus.cli import values
from iobus.cli.outcome import UsageError
from iobus.errors import RAISED, IobusError
from iobus.paging import PHYSICAL_BITS
from iobus.pc.pc import Pc

FORM = "FILE.py:CLASS@ADDR[:LENGTH][,NAME=VALUE...]"

_SPEC = re.compile(
    r"(?P<file>.+?\.py):(?P<name>[^@:,]+)@(?P<address>[^:,]*)(?::(?P<length>[^,]*))?(?:,(?P<options>.*))?", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One `--device`."""

    text: str
    file: Path
    name: str
    """Of the class."""
    address: int
    length: int | None
    options: dict[str, int | bool | str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the option's text. Raises `UsageError`."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise UsageError(f"--device {text}: it has not the form {FORM}")
        address = _number(text, "address", match["address"])
        length = None if match["length"] is None else _number(text, "length", match["length"])
        options: dict[str, int | bool | str] = {}
        for item in match["options"].split(",") if match["options"] else ():
            name, equals, given = item.partition("=")
            if not equals or not name.isidentifier() or name in options:
                what = "is there twice" if name in options else "is no NAME=VALUE"
                raise UsageError(f"--device {text}: {item!r} {what}; the form is {FORM}")
            options[name] = values.value(given)
        return cls(text, Path(match["file"]), match["name"], address, length, options)

    def make(self) -> Any:
        """Import the file and make the device. Raises `UsageError`."""
        module = _import(self)
        kind = getattr(module, self.name, None)
        if not isinstance(kind, type):
            classes = [name for name, item in vars(module).items() if _is_own_device(module, item)]
            hint = f"it has {', '.join(classes)}" if classes else "no class in it has read and write"
            what = "has no" if kind is None else "has no class"
            raise UsageError(f"device file {self.file} {what} {self.name!r}; {hint}")
        for method in ("read", "write"):
            if not callable(getattr(kind, method, None)):
                raise UsageError(
                    f"class {self.name} in {self.file} is no device: it has no method {method!r}; "
                    "a device defines read(offset, size) and write(offset, size, value)"
                )
        try:
            return kind(**self.options)
        except RAISED as exc:
            given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
            raise UsageError(f"{self.name}({given}) of {self.file} cannot be made: {_one_line(exc)}") from exc

    def attach(self, pc: Pc, device: Any) -> None:
        """Put `device` on the bus of `pc`, unless something has a fixed address there. Raises `UsageError`."""
        length = self.length if self.length is not None else getattr(device, "length", None)
        if not isinstance(length, int) or length <= 0:
            raise UsageError(
                f"--device {self.text}: the length is {length!r}; "
                f"give it as @{self.address:#x}:LENGTH, or the class an attribute `length`, in bytes"
            )
        end = self.address + length
        if end > 1 << PHYSICAL_BITS:
            raise UsageError(
                f"--device {self.text}: [{self.address:#x}, {end:#x}) is beyond the {PHYSICAL_BITS} bits of a guest "
                "physical address"
            )
        for base, stop, name in _taken(pc):
            if self.address < stop and base < end:
                raise UsageError(
                    f"--device {self.text}: [{self.address:#x}, {end:#x}) overlaps {name} at [{base:#x}, {stop:#x})"
                )
        try:
            pc.attach(device, self.address, length)
        except IobusError as exc:
            raise UsageError(f"--device {self.text}: {exc}") from exc
        except RAISED as exc:
            is_placed = any(region.device is device for region in pc.machine.mmio.regions)
            method = "placed(region)" if is_placed else "connect(pc)"
            raise UsageError(f"--device {self.text}: {method} failed: {_one_line(exc)}") from exc


def attach_devices(pc: Pc, specs: Sequence[DeviceSpec]) -> list[Any]:
    """Make the devices of `specs` and put them on the bus of `pc`. Raises `UsageError`."""
    devices = [spec.make() for spec in specs]
    for spec, device in zip(specs, devices, strict=True):
        spec.attach(pc, device)
    return devices


def _number(text: str, what: str, given: str) -> int:
    try:
        result = values.number(given)
    except ValueError as exc:
        raise UsageError(f"--device {text}: {what} {exc}") from None
    if result < 0:
        raise UsageError(f"--device {text}: {what} {given} is negative")
    return result


def _import(spec: DeviceSpec) -> ModuleType:
    """Import the file as Python would run it: its directory comes first on the path."""
    path = spec.file
    if not path.is_file():
        raise UsageError(f"device file {path} {'is no file' if path.exists() else 'does not exist'}")
    path = path.resolve()
    for module in list(sys.modules.values()):  # one file, one module: two devices of it share what it keeps
        if getattr(module, "__iobus_file__", None) == path:
            return module
    name = f"_iobus_device_{len(sys.modules)}_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # a .py file always has one
    module = importlib.util.module_from_spec(found)
    module.__dict__["__iobus_file__"] = path
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module  # before it runs: dataclasses look there
    try:
        found.loader.exec_module(module)
    except RAISED as exc:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == str(path)]
        at = f" (line {lines[-1]})" if lines else ""
        raise UsageError(f"device file {spec.file} does not import: {_one_line(exc)}{at}") from exc
    return module


def _is_own_device(module: ModuleType, item: object) -> bool:
    return (
        isinstance(item, type)
        and item.__module__ == module.__name__
        and all(callable(getattr(item, method, None)) for method in ("read", "write"))
    )


def _taken(pc: Pc) -> list[tuple[int, int, str]]:
    """The ranges of guest physical addresses that have an owner."""
    machine = pc.machine
    ranges = [(slot.base, slot.base + slot.size, "RAM") for slot in machine.memory.slots]
    for bus in (machine.mmio, *(vcpu.mmio for vcpu in machine.vcpus)):
        ranges += [
            (region.base, region.base + region.length, region.name) for region in bus.regions if region.in_range is None
        ]
    return ranges


def _one_line(exc: BaseException) -> str:
    return " ".join(f"{type(exc).__name__}: {exc}".split())
