"""Traces: what a record says, its forms on disk, and that what is no trace is told so in one line."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.cli.trace import Perfetto
from iobus.clock import SteppedClock
from iobus.machine import Machine
from iobus.registers import RW, Field, Register, RegisterBank, bits
from iobus.trace import JsonLines, Record, Touched, TraceFileError, Tracer, read_trace

WORDS = st.integers(0, 2**64 - 1)
NAMES = st.text(max_size=8)


@st.composite
def records(draw: st.DrawFn) -> Record:
    size = draw(st.sampled_from((1, 2, 4, 8)))
    fields = st.dictionaries(NAMES, WORDS, max_size=3).map(lambda found: tuple(found.items()))
    touched = st.builds(Touched, NAMES, fields, NAMES)
    return Record(
        time=draw(WORDS), vcpu=draw(st.integers(0, 15)), space=draw(st.sampled_from(("mmio", "pio"))),
        address=draw(WORDS), size=size, is_write=draw(st.booleans()), value=draw(st.integers(0, 256**size - 1)),
        region=draw(st.none() | NAMES), device=draw(st.none() | NAMES), offset=draw(WORDS),
        registers=draw(st.lists(touched, max_size=3).map(tuple)),
        rip=draw(WORDS), taken=draw(WORDS),
    )  # fmt: skip


class Control(Register):
    ENABLE = Field(0, RW)
    MODE = Field(bits(2, 1), RW)


class Described(RegisterBank):
    """One register with two fields, at offset 4."""

    CTRL = Control(4)


def traced() -> tuple[Machine, list[Record], Tracer]:
    machine, seen = Machine(clock=SteppedClock(), cpus=2), []
    return machine, seen, Tracer(machine, seen.append)


def test_a_record_says_who_when_and_what() -> None:
    """Time, vCPU, address, value, region, offset, and the registers that the device names."""
    machine, seen, tracer = traced()
    machine.mmio.attach(Described(), 0x1000, name="dev")
    with tracer:
        machine.clock.advance(5)  # type: ignore[attr-defined]
        machine.vcpus[1].mmio_path.write(0x1004, 4, 7)
        machine.vcpus[0].pio_path.read(0x80, 1)
    machine.vcpus[0].mmio_path.read(0x1000, 4)
    first, second = (record._replace(taken=0) for record in seen)
    registers = (Touched("CTRL", (("ENABLE", 1), ("MODE", 3)), "CTRL 0x7 (ENABLE=1 MODE=3)"),)
    assert first == Record(5, 1, "mmio", 0x1004, 4, True, 7, "dev", "Described", 4, registers, 0xFFF0, 0)
    assert second == Record(5, 0, "pio", 0x80, 1, False, 0xFF, None, None, 0, (), 0xFFF0, 0)
    assert str(first) == "0.000000 w vcpu1 mmio 0x1004 4 0x00000007 dev CTRL 0x7 (ENABLE=1 MODE=3)"
    assert str(second) == "0.000000 r vcpu0 pio 0x80 1 0xff (unclaimed)"


@given(st.lists(records(), max_size=5))
def test_json_lines_come_back_as_they_were(given_records: list[Record]) -> None:
    """What `JsonLines` writes `read_trace` reads, whatever names and values."""
    file = io.StringIO()
    sink = JsonLines(file)
    for record in given_records:
        sink(record)
    assert list(read_trace(io.StringIO(file.getvalue()))) == given_records


def line_of(**changed: Any) -> str:
    file = io.StringIO()
    JsonLines(file)(Record(0, 0, "mmio", 0, 4, False, 0, None, None, 0, (), 0, 0))
    header, line = file.getvalue().splitlines()
    data = json.loads(line)
    for key, value in changed.items():
        data.pop(key) if value is None else data.update({key: value})
    return f"{header}\n{json.dumps(data)}\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hello\n", "line 1"),
        ('{"iobus-trace": 99}\n', "line 1: .* the first line of a trace"),
        ("[1]\n", "line 1: .* the first line of a trace"),
        (line_of(size=3), r"line 2: .* size 3; use one of \(1, 2, 4, 8\)"),
        (line_of(value="0x100000000"), "line 2: .* value 0x100000000 does not fit in 4 bytes"),
        (line_of(value="-0x1"), "line 2: .* value -0x1 does not fit"),
        (line_of(value="fish"), "line 2: .*fish"),
        (line_of(address=None), "line 2: .*'address' is missing"),
        (line_of(op="fetch"), "line 2: .* op 'fetch' in space 'mmio'"),
        (line_of(time=-1), "line 2: .* time -1 is no whole number"),
        (line_of(region=7), "line 2: .* region 7 is no text"),
        (line_of(registers=[1]), "line 2"),
    ],
)
def test_what_is_no_trace_is_told_with_its_line(text: str, what: str) -> None:
    """A file that may come from anywhere: one sentence, with the line's number."""
    with pytest.raises(TraceFileError, match=f"^file, {what}"):
        list(read_trace(io.StringIO(text), "file"))


@given(st.binary(max_size=200))
def test_no_file_raises_anything_else(data: bytes) -> None:
    """Whatever follows a right header is records or `TraceFileError`."""
    lines = ['{"iobus-trace": 1}\n', *data.decode("latin-1").splitlines()]
    with contextlib.suppress(TraceFileError):
        list(read_trace(lines))


def test_perfettos_form_has_a_track_for_each_vcpu_and_an_event_for_each_access() -> None:
    """Trace Event Format: named threads, complete events with times in microseconds; also without its end."""
    machine, _, _ = traced()
    machine.mmio.attach(Described(), 0x1000, name="dev")
    file = io.StringIO()
    sink = Perfetto(file)
    with Tracer(machine, sink):
        machine.clock.advance(5_000_000)  # type: ignore[attr-defined]
        machine.vcpus[1].mmio_path.write(0x1004, 4, 7)
        machine.vcpus[0].mmio_path.read(0x9000, 4)
    unended = json.loads(file.getvalue() + "]")
    sink.end()
    events = json.loads(file.getvalue())
    assert events == unended
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {0: "vcpu0", 1: "vcpu1"}
    write, read = (event for event in events if event["ph"] == "X")
    assert (write["name"], read["name"]) == ("dev CTRL write", "unclaimed 0x9000 read")
    assert (write["pid"], write["tid"], write["cat"]) == (1, 1, "mmio")
    assert write["ts"] + write["dur"] == pytest.approx(5000)
    assert write["args"]["CTRL"] == "CTRL 0x7 (ENABLE=1 MODE=3)"
