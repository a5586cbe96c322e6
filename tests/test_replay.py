"""Replay: a trace against a device without a guest, by the library, the command, and the test it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iobus.bus import Device
from iobus.cli import main
from iobus.clock import SteppedClock
from iobus.machine import Machine
from iobus.replay import ReplayError, replay
from iobus.trace import JsonLines, Record, Tracer

COUNTER = '''\
from iobus.registers import RW, Field, Register, RegisterBank, bits, on_read


class Value(Register):
    LOW = Field(bits(7, 0), RW)
    HIGH = Field(bits(31, 8), RW)


class Counter(RegisterBank):
    """Counts reads, from what was last written."""

    VALUE = Value(0)

    def __init__(self, step=1):
        super().__init__()
        self.step = step

    @on_read(VALUE)
    def count(self):
        self.VALUE.LOW += self.step
'''


class Uptime(Device):
    """Reads as the clock's milliseconds, which a timer counts."""

    def __init__(self, machine: Machine, every: int = 1_000_000) -> None:
        self.ticks = 0
        self.every = every
        self.timer = machine.clock.timer(self.tick)
        self.timer.arm(every)

    def tick(self) -> None:
        self.ticks += 1
        self.timer.arm((self.ticks + 1) * self.every)

    def read(self, offset: int, size: int) -> int:
        return self.ticks


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A device file, and the trace of a guest that used its device."""
    (tmp_path / "counter.py").write_text(COUNTER)
    space: dict[str, Any] = {}
    exec(COUNTER, space)
    machine = Machine(clock=SteppedClock())
    machine.mmio.attach(space["Counter"](), 0xD0000000)
    with (tmp_path / "run.jsonl").open("w") as file, Tracer(machine, JsonLines(file)):
        path = machine.vcpus[0].mmio_path
        for value in (0, 0x41, 0x1FE):
            path.write(0xD0000000, 4, value)
            path.read(0xD0000000, 4)
        path.read(0x9000, 4)
    return tmp_path


def spec(files: Path, more: str = "") -> str:
    return f"{files / 'counter.py'}:Counter@0xC0000000{more}"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_same_device_answers_the_same(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device that did not change replays with status 0 and not a word, also at another address."""
    assert run("replay", files / "run.jsonl", "--device", spec(files)) == 0
    assert capsys.readouterr() == ("", "")


def test_the_first_difference_is_named_by_register_and_field(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed device: status 1, the access, both values, and only the fields that differ."""
    assert run("replay", files / "run.jsonl", "--device", spec(files, ",step=3")) == 1
    assert capsys.readouterr().err == (
        f"iobus: {files}/run.jsonl: access 2, 0.000000 s: 4-byte read of Counter at offset 0x0 gave 0x00000001, "
        "now gives 0x00000003\n  VALUE: LOW 0x1, now 0x3\n"
    )


def test_a_trace_becomes_a_test_in_one_command(files: Path) -> None:
    """The test that `--test` writes passes for the same device, and fails once the device has changed."""
    test = files / "test_counter.py"
    assert run("replay", files / "run.jsonl", "--device", spec(files), "--test", test) == 0
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    assert subprocess.run(pytest_, cwd=files, capture_output=True, check=False).returncode == 0
    (files / "counter.py").write_text(COUNTER.replace("step=1", "step=2"))
    done = subprocess.run(pytest_, cwd=files, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "VALUE: LOW 0x1, now 0x2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("none.jsonl",), "trace file none.jsonl cannot be read: No such file or directory"),
        (("{files}/counter.py",), "counter.py, line 1: no access of a trace"),
        (
            ("{files}/run.jsonl", "--region", "Fish"),
            "no access of region 'Fish'; it has accesses of 'Counter'",
        ),
        (("{files}/run.jsonl", "--test", "counter.py"), "--test counter.py: pytest looks for files named test_NAME.py"),
        (("{files}/run.jsonl", "--test", "{files}/nowhere/test_x.py"), "cannot be written: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], what: str
) -> None:
    """What cannot be replayed is told in one line with status 2; 1 is a device that answers differently."""
    given = [argument.format(files=files) for argument in arguments]
    assert run("replay", *given, "--device", spec(files)) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1


def test_a_file_without_lines_is_not_read_whole(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A first line that does not end within a megabyte is no trace's: a device that gives bytes for ever has none."""
    header, records = (files / "run.jsonl").read_text().split("\n", 1)
    (files / "long.jsonl").write_text(header[:-1] + " " * (1 << 20) + "}\n" + records)
    assert run("replay", files / "long.jsonl", "--device", spec(files)) != 0
    assert "long.jsonl, line 1: no access of a trace" in capsys.readouterr().err


def test_a_test_is_not_written_over(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--test` with a name that is taken leaves the file as it is."""
    test = files / "test_counter.py"
    test.write_text("mine")
    assert run("replay", files / "run.jsonl", "--device", spec(files), "--test", test) == 2
    assert "exists already" in capsys.readouterr().err
    assert test.read_text() == "mine"


def test_timers_fire_between_the_same_accesses() -> None:
    """The clock stands at each record's time when its access is made."""
    recorded: list[Record] = []
    for sink, steps in ((recorded, (0, 1_500_000, 40_000_000, 100)), (None, ())):
        machine = Machine(clock=SteppedClock())
        region = machine.mmio.attach(Uptime(machine), 0x1000, 4)
        if sink is None:
            assert replay(recorded, machine, region) is None
        else:
            with Tracer(machine, sink.append):
                for step in steps:
                    machine.clock.advance(step)  # type: ignore[attr-defined]
                    machine.vcpus[0].mmio_path.read(0x1000, 4)
    assert [record.value for record in recorded] == [0, 1, 41, 41]
    machine = Machine(clock=SteppedClock())
    difference = replay(recorded, machine, machine.mmio.attach(Uptime(machine, 2_000_000), 0x1000, 4, name="Uptime"))
    assert difference is not None
    assert (difference.number, difference.value) == (2, 0)


def test_a_device_that_claims_no_more_differs() -> None:
    """A read that is declined now is a difference, not a value."""
    machine = Machine(clock=SteppedClock())
    region = machine.mmio.attach(Device(), 0, 16, name="dev")
    record = Record(0, 0, "mmio", 4, 4, False, 7, "dev", "Device", 4, (), 0, 0)
    difference = replay([record], machine, region)
    assert "does not claim the access" in str(difference)


def test_a_replay_needs_a_clock_that_stands_still() -> None:
    """With real time the answers would depend on the host's speed."""
    with Machine() as machine, pytest.raises(ReplayError, match="SteppedClock"):
        replay([], machine, machine.mmio.attach(Device(), 0, 16))
