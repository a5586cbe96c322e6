"""A trace: what every access was, who claimed it, and which registers it touched; kept as JSON lines.

Stands above `machine.py`; a `Tracer` listens at the access paths of the machine's vCPUs. With none, the
paths pay nothing. What is made of a trace is in `replay.py` and in the command (`iobus.cli`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import IO, Any, Final, Literal, NamedTuple, Self

from iobus.bus import IobusError
from iobus.machine import Machine
from iobus.path import Access, AccessPath, Observer
from iobus.registers.describe import RegisterAccess
from iobus.vcpu import VCPU
from iobus.widths import SIZES

FORMAT: Final = 1
"""The version in the first line of a trace."""

_HEADER: Final = "iobus-trace"


Space = Literal["mmio", "pio"]


class TraceFileError(IobusError, ValueError):
    """A file that is no trace: it names the line and what is wrong with it."""


class Touched(NamedTuple):
    """A register that an access touched, as its device names it."""

    name: str
    fields: tuple[tuple[str, int], ...]
    """Name and value of each field that the access covers."""
    text: str
    """All of it for people, with the names of values."""

    def __str__(self) -> str:
        return self.text


class Record(NamedTuple):
    """One access in a trace."""

    time: int
    """The machine's clock when it was complete, in ns."""
    vcpu: int
    space: Space
    address: int
    size: int
    """1, 2, 4 or 8 bytes."""
    is_write: bool
    value: int
    region: str | None
    """The name of the region that claimed it; None where nobody did."""
    device: str | None
    """Its device's class."""
    offset: int
    """From the region's base; 0 where nobody claimed it."""
    registers: tuple[Touched, ...]
    rip: int
    """The instruction pointer as far as the engine knows it (see the engine's docs)."""
    taken: int
    """How long the device, or the caller that answered, took, in ns of the host."""

    @property
    def base(self) -> int:
        """Where the region was at the access: with name and space, what tells it from others of its name."""
        return self.address - self.offset

    def __str__(self) -> str:
        """The line of `--trace`: time in s, r or w, bus, address, size, value, region, registers."""
        verb, value = "w" if self.is_write else "r", f"{self.value:#0{2 + 2 * self.size}x}"
        names = "".join(f" {register}" for register in self.registers)
        return (
            f"{self.time / 1e9:.6f} {verb} vcpu{self.vcpu} {self.space} {self.address:#x} {self.size} {value} "
            f"{self.region or '(unclaimed)'}{names}"
        )


Sink = Callable[[Record], None]


class Tracer:
    """Gives `sink` a `Record` of each access of `machine`'s vCPUs, in their order, while it is open.

    `sink` is called with the machine lock held and must not make an access. Accesses that end in
    `DeviceError`, and DMA between devices, are not recorded.
    """

    def __init__(self, machine: Machine, sink: Sink) -> None:
        self._machine = machine
        self._sink = sink
        self._observed: list[tuple[AccessPath, Observer]] = []

    def __enter__(self) -> Self:
        for vcpu in self._machine.vcpus:
            self._observed += [
                (vcpu.mmio_path, self._observer(vcpu, "mmio")),
                (vcpu.pio_path, self._observer(vcpu, "pio")),
            ]
        for path, observer in self._observed:
            path.observe(observer)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        for path, observer in self._observed:
            path.ignore(observer)
        self._observed.clear()

    def _observer(self, vcpu: VCPU, space: Space) -> Observer:
        clock, sink = self._machine.clock, self._sink

        def observe(access: Access) -> None:
            region, address, size, is_write, value, _, taken, offset = access
            name = device = None
            registers: tuple[Touched, ...] = ()
            if region is not None:
                name, device = region.name, type(region.device).__name__
                registers = touched(region.device, offset, size, value, is_write)
            rip = vcpu.executor.rip()
            sink(Record(
                clock.now(), vcpu.index, space, address, size, is_write, value, name, device, offset, registers,
                rip, taken,
            ))  # fmt: skip

        return observe


def touched(device: object, offset: int, size: int, value: int, is_write: bool) -> tuple[Touched, ...]:
    """Name the registers of `device` that an access touches; empty where it cannot tell.

    A device can tell that has the method of `iobus.registers.describe`.
    """
    describe = getattr(device, "describe", None)
    if describe is None:
        return ()
    items: list[RegisterAccess] = describe(offset, size, value, is_write)
    return tuple(
        Touched(item.register, tuple((field.name, field.value) for field in item.fields), str(item)) for item in items
    )


class JsonLines:
    """A sink that writes a line of JSON for each record to `file`, after a first one that names the format."""

    def __init__(self, file: IO[str]) -> None:
        self._write = file.write
        self._write(json.dumps({_HEADER: FORMAT}) + "\n")

    def __call__(self, record: Record) -> None:
        self._write(json_line(record))


def json_line(record: Record) -> str:
    """Return `record` as its line. Addresses and values are hexadecimal text: JSON's readers round large numbers."""
    registers = "[]"
    if record.registers:
        registers = json.dumps(
            [{"name": item.name, "fields": dict(item.fields), "text": item.text} for item in record.registers],
            separators=(",", ":"),
        )
    # Put together by hand: a dictionary for `json` would cost more than the rest of the trace.
    return (
        f'{{"time":{record.time},"vcpu":{record.vcpu},"op":"{"write" if record.is_write else "read"}",'
        f'"space":"{record.space}","address":"{record.address:#x}","size":{record.size},"value":"{record.value:#x}",'
        f'"region":{_quoted(record.region)},"device":{_quoted(record.device)},"offset":{record.offset},'
        f'"registers":{registers},"rip":"{record.rip:#x}","taken":{record.taken}}}\n'
    )


_quoted = functools.lru_cache(maxsize=1024)(json.dumps)


def read_trace(lines: Iterable[str], name: str = "trace") -> Iterator[Record]:
    """Yield the records of JSON lines. Raises `TraceFileError`, which names `name` and the line, at what is none."""
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            if number > 1:
                yield _from_json(data)
            elif not isinstance(data, dict) or data.get(_HEADER) != FORMAT:
                raise ValueError(f'the first line of a trace is {{"{_HEADER}": {FORMAT}}}')
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            what = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
            raise TraceFileError(f"{name}, line {number}: no access of a trace: {what}") from None


def _from_json(data: Any) -> Record:
    address, value = int(data["address"], 16), int(data["value"], 16)
    time, vcpu, size, offset, taken = (_whole(data, key) for key in ("time", "vcpu", "size", "offset", "taken"))
    if size not in SIZES:
        raise ValueError(f"size {size}; use one of {SIZES}")
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"value {value:#x} does not fit in {size} bytes")
    if data["op"] not in ("read", "write") or data["space"] not in ("mmio", "pio"):
        raise ValueError(f"op {data['op']!r} in space {data['space']!r}; use read or write, in mmio or pio")
    region, device = (None if data[key] is None else _text(data, key) for key in ("region", "device"))
    registers = tuple(
        Touched(_text(item, "name"), tuple((field, _whole(item["fields"], field)) for field in item["fields"]),
                _text(item, "text"))
        for item in data["registers"]
    )  # fmt: skip
    return Record(
        time, vcpu, data["space"], address, size, data["op"] == "write", value,
        region, device, offset, registers, int(data["rip"], 16), taken,
    )  # fmt: skip


def _whole(data: Any, key: str) -> int:
    value = data[key]
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} {value!r} is no whole number")
    return value


def _text(data: Any, key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} {value!r} is no text")
    return value
