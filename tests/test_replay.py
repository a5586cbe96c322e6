"""Replay: a trace against a device without a guest, by the library, the command, and the test it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iobus.bus import Device, Region
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


@pytest.fixture
def two(files: Path) -> Path:
    """The directory with `two.jsonl`: a guest used two counters, at 0xd0000000 from 1 and at 0xd0001000 from 2."""
    space: dict[str, Any] = {}
    exec(COUNTER, space)
    machine = Machine(clock=SteppedClock())
    bases = {0xD0000000: 1, 0xD0001000: 2}
    for base in bases:
        machine.mmio.attach(space["Counter"](), base)
    with (files / "two.jsonl").open("w") as file, Tracer(machine, JsonLines(file)):
        path = machine.vcpus[0].mmio_path
        for base, value in bases.items():
            path.write(base, 4, value)
        assert [path.read(base, 4) for base in bases] == [2, 3]
    return files


@pytest.mark.parametrize("base", ["0xd0000000", "0xd0001000"])
def test_one_of_two_devices_of_a_class_is_told_by_its_base(two: Path, base: str) -> None:
    """Each alone answers as before; the one that the trace has not at a base is not found there."""
    device = ("--device", spec(two))
    assert run("replay", two / "two.jsonl", *device, "--region", f"Counter@{base}") == 0
    test = two / "test_one.py"
    assert run("replay", two / "two.jsonl", *device, "--region", f"Counter@{base}", "--test", test) == 0
    assert len((two / "test_one.jsonl").read_text().splitlines()) == 1 + 2
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    assert subprocess.run(pytest_, cwd=two, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("more", [(), ("--test", "{two}/test_both.py")])
def test_which_of_two_devices_is_asked_for(
    two: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    """Without a choice nothing is compared, and nothing is written: one line has what there is to choose from."""
    arguments = [argument.format(two=two) for argument in more]
    assert run("replay", two / "two.jsonl", "--device", spec(two), *arguments) != 0
    assert capsys.readouterr().err == (
        f"iobus: {two}/two.jsonl: the trace has Counter@0xd0000000, Counter@0xd0001000: several devices, or one that "
        "moved; choose 'Counter@0xd0000000', say, or 'Counter' for all; --region names it\n"
    )
    assert not (two / "test_both.py").exists()


def test_a_base_where_nobody_was_is_told_with_those_where_somebody_was(
    two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wrong base gets the right ones."""
    assert run("replay", two / "two.jsonl", "--device", spec(two), "--region", "Counter@0x1000") != 0
    assert "'Counter@0x1000'; it has accesses of 'Counter@0xd0000000', 'Counter@0xd0001000'" in capsys.readouterr().err


def test_it_is_asked_for_also_when_the_first_one_differs(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A difference of a device that was not chosen is not told as if it were."""
    lines = (two / "two.jsonl").read_text().splitlines(keepends=True)
    (two / "two.jsonl").write_text("".join(lines[i] for i in (0, 1, 3, 2, 4)))  # the first one's come first
    assert run("replay", two / "two.jsonl", "--device", spec(two, ",step=3")) != 0
    assert "several devices, or one that moved" in capsys.readouterr().err


class Mover(Device):
    """A write moves it; it reads as the number of moves."""

    length = 0x100

    def __init__(self) -> None:
        self.moves = 0

    def placed(self, region: Region) -> None:
        self.region = region

    def read(self, offset: int, size: int) -> int:
        return self.moves

    def write(self, offset: int, size: int, value: int) -> None:
        self.moves += 1
        self.region.move(value)


def test_a_region_that_moved_is_one_by_its_name() -> None:
    """Its name alone is all of it, wherever it was, and its base a part; without either it is asked for."""
    recorded: list[Record] = []

    def machine() -> tuple[Machine, Region]:
        made, device = Machine(clock=SteppedClock()), Mover()
        device.placed(made.mmio.attach(device, 0x1000))
        return made, device.region

    with Tracer((first := machine()[0]), recorded.append):
        path = first.vcpus[0].mmio_path
        path.write(0x1000, 4, 0x3000)
        assert path.read(0x3000, 4) == 1
        path.write(0x3000, 4, 0x5000)
        assert path.read(0x5004, 4) == 2
    assert replay(recorded, *machine(), name="Mover") is None
    assert replay(recorded[:2], *machine(), name="Mover@0x3000") is not None  # it was not moved there
    with pytest.raises(ReplayError, match="has Mover@0x1000, Mover@0x3000, Mover@0x5000: several devices, or one that"):
        replay(recorded, *machine())


def test_a_name_may_have_an_at_sign() -> None:
    """A region that is called so is found by all of its name."""
    machine = Machine(clock=SteppedClock())
    record = Record(0, 0, "mmio", 4, 4, True, 7, "uart@3f8", "Device", 4, (), 0, 0)
    assert replay([record], machine, machine.mmio.attach(Device(), 0, 16), name="uart@3f8") is None
