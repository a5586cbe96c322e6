"""`--trace [FILE]`: where a run's trace goes, by the file's name; above `iobus.trace`.

On the terminal, and in a file of any other name, a record is a line of text, with its RIP. `*.jsonl` is
JSON lines, which `iobus replay` and `iobus report` read. `*.json` is what Perfetto's viewer
(ui.perfetto.dev) opens: the Trace Event Format, with a track for each vCPU.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from iobus.bus import IobusError
from iobus.cli.ending import LAST_RESORT
from iobus.cli.outcome import UsageError
from iobus.machine import Machine
from iobus.trace import JsonLines, Record, Sink, TraceFileError, Tracer, read_trace

_LONGEST: Final = 1 << 20
"""Characters of a line that are read as one: no access needs as many, and what is no trace may have no lines."""


class TraceError(IobusError):
    """The trace file cannot be written on."""


@contextlib.contextmanager
def tracing(machine: Machine, where: str | None, say: Callable[[str], None]) -> Iterator[None]:
    """Trace to the file `where`, or for "" to `say`, or for None not at all. Raises `UsageError`, `TraceError`."""
    if where is None:
        yield
    elif not where:
        with Tracer(machine, lambda record: say(_line(record))):
            yield
    else:
        try:
            file: IO[str] = _TraceFile(where)
        except OSError as exc:
            raise UsageError(f"trace file {where} cannot be written: {exc.strerror}") from exc
        with file, LAST_RESORT.before(file.flush):
            sink = _sink(Path(where).suffix, file)
            with Tracer(machine, sink):
                yield
            if isinstance(sink, Perfetto):
                sink.end()


def read_trace_file(path: Path) -> Iterator[Record]:
    """Yield the records of a `*.jsonl` trace. Raises `UsageError`.

    A run that was killed, or whose disk was full, leaves the beginning of a line at the end: it is told on standard
    error, and left out.
    """
    lines = _Lines(path)
    try:
        yield from read_trace(lines, str(path))
    except OSError as exc:
        raise UsageError(f"trace file {path} cannot be read: {exc.strerror}") from exc
    except TraceFileError as exc:
        if lines.number < 2 or not lines.is_torn:
            raise UsageError(str(exc)) from exc
        print(f"iobus: {path}: the trace ends in the middle of its line {lines.number}", file=sys.stderr)
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no trace: it is no text; iobus boot --trace FILE.jsonl writes one") from None


class _Lines:
    """The lines of a trace file, and where among them its reader is. Raises `OSError`, `UnicodeDecodeError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.number = 0
        self.is_torn = False
        """The line is the last and has no end."""

    def __iter__(self) -> Iterator[str]:
        with self._path.open(encoding="utf-8") as file:
            for self.number, line in enumerate(iter(partial(file.readline, _LONGEST), ""), 1):
                self.is_torn = len(line) < _LONGEST and not line.endswith("\n")
                yield line


def _sink(suffix: str, file: IO[str]) -> Sink:
    if suffix == ".jsonl":
        return JsonLines(file)
    if suffix == ".json":
        return Perfetto(file)
    return lambda record: print(_line(record), file=file)


def _line(record: Record) -> str:
    return f"{record} rip={record.rip:#x}"


class _TraceFile(io.TextIOWrapper):
    """A text file whose failure to take more is a `TraceError` that names it."""

    def __init__(self, where: str) -> None:
        super().__init__(open(where, "wb"), encoding="utf-8")  # noqa: PTH123, SIM115 closed with the wrapper
        self._where = where

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as exc:
            raise self._failed(exc) from exc

    def close(self) -> None:
        try:
            super().close()
        except OSError as exc:
            raise self._failed(exc) from exc

    def _failed(self, exc: OSError) -> TraceError:
        return TraceError(f"trace file {self._where} cannot be written: {exc.strerror}")


class Perfetto:
    """A sink in the Trace Event Format, in its JSON array form: a complete event for each access.

    The event's time is the guest's, its duration how long the device took, both in microseconds.
    """

    def __init__(self, file: IO[str]) -> None:
        self._write = file.write
        self._vcpus: set[int] = set()
        self._write('[\n{"name":"process_name","ph":"M","pid":1,"args":{"name":"iobus"}}')

    def __call__(self, record: Record) -> None:
        if record.vcpu not in self._vcpus:
            self._vcpus.add(record.vcpu)
            self._event(name="thread_name", ph="M", pid=1, tid=record.vcpu, args={"name": f"vcpu{record.vcpu}"})
        where = ", ".join(register.name for register in record.registers) or f"+{record.offset:#x}"
        verb = "write" if record.is_write else "read"
        what = f"{record.region} {where}" if record.region is not None else f"unclaimed {record.address:#x}"
        self._event(
            name=f"{what} {verb}", cat=record.space, ph="X", pid=1, tid=record.vcpu,
            ts=(record.time - record.taken) / 1000, dur=record.taken / 1000,
            args={
                "address": hex(record.address), "size": record.size, "value": hex(record.value), "rip": hex(record.rip),
                **{register.name: register.text for register in record.registers},
            },
        )  # fmt: skip

    def end(self) -> None:
        """Close the array. A file without its end, of a run that was killed, is read all the same."""
        self._write("\n]\n")

    def _event(self, **event: Any) -> None:
        self._write(",\n" + json.dumps(event, separators=(",", ":")))
