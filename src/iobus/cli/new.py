"""`iobus new`: a device to begin with, as a Python file and a test beside it.

Above `iobus.registers.source`. With `--from` the registers are those of a map (SystemRDL, CMSIS-SVD, IP-XACT); without
one they are the fewest that show how a device is written.
"""

from __future__ import annotations

import ast
import keyword
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from iobus.cli.outcome import Status, UsageError
from iobus.registers import MapError
from iobus.registers.entries import Dimension, Entry, RegisterEntry, RegisterMap
from iobus.registers.fitting import Imported
from iobus.registers.ipxact import read_ipxact
from iobus.registers.kinds import OnRead, OnWrite
from iobus.registers.source import USED_NAMES, class_name, device_source, hexadecimal
from iobus.registers.svd import read_svd
from iobus.registers.systemrdl import read_systemrdl

_ADDRESS: Final = "0xD0000000"
_MOST_TESTED: Final = 12  # reset values in the test: it is a beginning

_SKELETON: Final = '''\
"""{class_name}: what it is, and whose datasheet says so."""

from iobus.irq import Pin
from iobus.pc.pc import Pc
from iobus.registers import RW, RW1C, Field, Register, RegisterBank, W, on_write


class Control(Register):
    START = Field(0, W, "Writing 1 starts it")
    ENABLE = Field(1, RW, "It interrupts when it is done")


class Status(Register):
    DONE = Field(0, RW1C, "It is done")


class {class_name}(RegisterBank, length=0x1000):
    CTRL = Control(0x0)
    STATUS = Status(0x4)

    def __init__(self) -> None:
        self.irq = Pin().line()  # until a machine gives it one

    def connect(self, pc: Pc) -> None:
        self.irq = pc.irq(10, "{name}")

    @on_write(CTRL.START)
    def start(self, value: int) -> None:
        self.STATUS.DONE |= value

    def update(self) -> None:
        self.irq.set(bool(self.CTRL.ENABLE and self.STATUS.DONE))
'''

_SKELETON_TEST: Final = '''\
"""Tests of {module}.py: `pytest {test}`."""

from iobus.testing import Bench

from {module} import {class_name}


def test_it_interrupts_until_done_is_cleared(bus: Bench) -> None:
    """STATUS.DONE interrupts where CTRL.ENABLE says so; writing 1 clears it."""
    device = {class_name}()
    bus.attach(device, {address})
    registers = bus.registers(device)
    registers.CTRL.write(ENABLE=1, START=1)
    assert registers.STATUS.DONE == 1
    assert bus.pins[10].level
    registers.STATUS.write(DONE=1)
    assert not bus.pins[10].level
'''

_TEST: Final = '''\
"""Tests of {module}.py: `pytest {test}`."""

from iobus.testing import Bench

from {module} import {class_name}


def test_reset_values(bus: Bench) -> None:
    """After reset a guest reads what the register map says."""
    device = {class_name}()
    bus.attach(device, {address})
    registers = bus.registers(device)
{resets}
'''

_STORED: Final = '''

def test_{function}_keeps_what_is_written(bus: Bench) -> None:
    """A guest reads back what it wrote to {field}."""
    device = {class_name}()
    bus.attach(device, {address})
    registers = bus.registers(device)
    registers{register}.write({value})
    assert registers{register}.read() & {mask} == {value}
'''


@dataclass(frozen=True, slots=True)
class NewOptions:
    """What the command line of `iobus new` says."""

    name: str | None
    """Of the class; by default the map's."""
    source: Path | None
    top: str | None
    output: Path | None


def new(options: NewOptions) -> tuple[Status, str]:
    """Write the device and its test; return the status and a sentence. Raises `UsageError`, `MapError`."""
    imported = None if options.source is None else read_map(options.source, options.top)
    if options.name is None and imported is None:
        raise UsageError("iobus new: give the device's NAME, or a register map with --from")
    if options.top is not None and imported is None:
        raise UsageError(f"--top {options.top}: it is for a register map, which --from names")
    given = _class_name(options.name, imported)
    path = options.output or Path(f"{_module_name(given)}.py")
    if path.suffix != ".py" or not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise UsageError(f"--output {path}: a test imports it, so it is called NAME.py")
    test = path.with_name(f"test_{path.name}")
    for file in (path, test):
        if file.exists():
            raise UsageError(f"{file} exists already; remove it, or choose another name with --output")
    words = {"class_name": given, "module": path.stem, "test": test.name, "address": _ADDRESS, "name": path.stem}
    if imported is None or options.source is None:
        texts = _SKELETON.format(**words), _SKELETON_TEST.format(**words)
    else:
        doc = f"{given}, from the register map {options.source.name}: fill in what the device does."
        texts = device_source(imported.map, given, doc), _test_of(imported.map, words)
    try:
        for file, text in zip((path, test), texts, strict=True):
            file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"{exc.filename} cannot be written: {exc.strerror}") from exc
    for note in imported.notes if imported else ():
        print(note, file=sys.stderr)
    return Status.OK, f"wrote {path} and {test}; try: iobus boot --device {path}:{given}@{_ADDRESS}"


def read_map(path: Path, top: str | None) -> Imported:
    """Read a register map by its file's name. Raises `UsageError`, `MapError`."""
    readers: dict[str, Callable[[Path, str | None], Imported]] = {
        ".rdl": read_systemrdl,
        ".svd": read_svd,
        ".xml": _read_xml,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"--from {path}: use NAME.rdl (SystemRDL), NAME.svd (CMSIS-SVD) or NAME.xml (IP-XACT)")
    try:
        return reader(path, top)
    except MapError as exc:
        raise UsageError(str(exc).replace("top=", "--top")) from exc


def _read_xml(path: Path, top: str | None) -> Imported:
    """IP-XACT, or an SVD file under that name."""
    try:
        is_svd = b"<device" in path.read_bytes()[:4096]
    except OSError:
        is_svd = False
    return read_svd(path, top) if is_svd else read_ipxact(path, top)


def _class_name(given: str | None, imported: Imported | None) -> str:
    """The class's name: as `given`, if it can be that, else the map's, made different where it must be."""
    texts = (_SKELETON, _SKELETON_TEST) if imported is None else (_TEST,)
    used = {name for text in texts for name in _names_in(text)} | (USED_NAMES if imported else set())
    if given is None:
        name = class_name(imported.map.name if imported else "")
        return f"{name}Device" if name in used else name
    if keyword.iskeyword(given):
        raise UsageError(f"iobus new {given}: {given} is a keyword of Python; choose another name, as in Timer")
    if not given.isidentifier():
        raise UsageError(f"iobus new {given}: it names a class; use letters, digits and underscores, as in Timer")
    if given in used:
        raise UsageError(
            f"iobus new {given}: what is written uses the name {given} itself; choose another, as in {given}Device"
        )
    return given


def _names_in(template: str) -> Iterator[str]:
    """The names that a text imports, defines or uses, beside those that are filled in."""
    words = dict.fromkeys(("class_name", "module", "name", "test", "resets"), "_") | {"address": _ADDRESS}
    for node in ast.walk(ast.parse(template.format(**words))):
        match node:
            case ast.Name(id=name) | ast.alias(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name


def _module_name(name: str) -> str:
    """`DmaEngine` is in dma_engine.py, and `Random`, which as random.py would hide Python's, in random_device.py."""
    parts: list[str] = []
    for before, letter in zip(" " + name, name, strict=False):
        if letter.isupper() and (before.islower() or before.isdigit()):
            parts.append("_")
        parts.append(letter.lower())
    module = "".join(parts)
    return f"{module}_device" if keyword.iskeyword(module) or _hides(module) else module


def _hides(module: str) -> bool:
    """Whether a file by this name would come before a module that others import, or is one that pytest looks for."""
    if module in sys.stdlib_module_names or module == "conftest":
        return True
    here = Path.cwd()
    return (
        PathFinder.find_spec(module, [path for path in sys.path if path and Path(path).resolve() != here]) is not None
    )


def _test_of(bank: RegisterMap, words: dict[str, str]) -> str:
    places = list(_places(bank.members, ""))
    resets = [
        f"    assert registers{place}.read() == {hexadecimal(_shown(register))}"
        for place, register in places
        if register.readable and all(access.on_read is not OnRead.EFFECT for _, access in register.pieces())
    ][:_MOST_TESTED]
    text = _TEST.format(resets="\n".join(resets or ["    assert registers is not None"]), **words)
    for place, register in places:
        mask = sum(
            mask for mask, access in register.pieces()
            if (access.on_read, access.on_write) == (OnRead.VALUE, OnWrite.STORES)
        )  # fmt: skip
        if mask:
            plain = place.replace("[0]", "").lstrip(".")
            function = "_".join("".join(c if c.isalnum() else " " for c in plain.lower()).split())
            value = mask & -mask | 1 << mask.bit_length() - 1
            text += _STORED.format(
                function=function, field=plain, register=place, value=hexadecimal(value), mask=hexadecimal(mask),
                **words,
            )  # fmt: skip
            break
    return text


def _shown(register: RegisterEntry) -> int:
    """What a guest's first read gives."""
    return register.reset & sum(mask for mask, access in register.pieces() if access.on_read is not OnRead.ZERO)


def _places(members: Sequence[Entry], at: str) -> Iterator[tuple[str, RegisterEntry]]:
    """How a test reaches each register; of an array the first."""
    for member in members:
        here = f"{at}.{member.name}" if member.name.isidentifier() and not keyword.iskeyword(member.name) else (
            f'{at}["{member.name}"]'
        )  # fmt: skip
        if isinstance(member.array, Dimension):
            here += "[0]"
        if isinstance(member, RegisterEntry):
            yield here, member
        else:
            yield from _places(member.members, here)
