"""A device that hangs: the command ends all the same, says where it hangs, and leaves the terminal as it was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cli_rig
import pytest
from cli_rig import DEVICE, HANG, IOBUS, STORE, Files, Terminal, iobus, run_guest, say, terminal

from iobus.engines import choose
from iobus.exits import EngineError
from iobus.hung import GRACE

HANGS = """\
import threading, time

class Mine:
    mode = "sleep"

    def __init__(self, mode="sleep"):
        self.mode = mode

    def connect(self, pc):
        self.timer = pc.machine.clock.timer(self.hang, "mine")

    def read(self, offset, size):
        return 0

    def write(self, offset, size, value):
        print("hangs", flush=True)
        if self.mode == "timer":
            self.timer.arm(0)
        else:
            self.hang()

    def hang(self):
        if self.mode == "wait":
            threading.Event().wait()
        while self.mode == "spin":
            pass
        time.sleep(1000)
"""
PATIENT = [
    sys.executable,
    "-c",
    "import sys; from iobus import hung; hung.GRACE = 1e6; from iobus.__main__ import main; sys.exit(main())",
]
"""The command with a grace that does not pass, so that what ends it is the second request."""
ACCESS = rf"Mine at region 'Mine': 4-byte write of 0x79 at address {DEVICE:#x} \(offset 0x0\)"  # 0x79: `say`'s last
HUNG = rf"iobus: a device hangs, and the guest was given up: {ACCESS}, at mine.py:\d+ in hang\r?\n"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def guest(files: Files, mode: str = "sleep") -> list[object]:
    return ["--kernel", files.kernel(say("ready") + STORE + HANG), "--device", f"{files.device(HANGS)},mode={mode}"]


@pytest.mark.parametrize("mode", ["sleep", "spin"])
def test_the_timeout_ends_it(files: Files, mode: str) -> None:
    """After the grace, with the status of a device's failure."""
    start = time.monotonic()
    done = iobus("boot", *guest(files, mode), "--timeout", 1)
    assert time.monotonic() - start >= 1 + GRACE
    assert done.returncode == 4
    assert re.fullmatch(HUNG, done.stderr.decode())


def test_a_timer_that_hangs_is_named(files: Files) -> None:
    """The guest stops, but the clock's thread does not; the traced accesses are in the trace's file."""
    trace = files.path / "trace.txt"
    done = iobus("boot", *guest(files, "timer"), "--timeout", 1, "--trace", trace)
    assert done.returncode == 4
    assert re.fullmatch(
        r"iobus: a device hangs, and the guest was given up: timer 'mine', at mine.py:\d+ in hang\n",
        done.stderr.decode(),
    )
    assert f"w vcpu0 mmio {DEVICE:#x} 4 0x00000079 Mine" in trace.read_text()


def shown_hung(it: Terminal) -> bool:
    return re.search(HUNG, it.shown.decode(errors="replace")) is not None


@pytest.mark.parametrize("mode", ["sleep", "spin", "wait"])
def test_ctrl_a_x_ends_it(files: Files, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, after the grace; twice, at once. Keys that were typed before are not in the way."""
    if mode != "wait":
        monkeypatch.setattr(cli_rig, "IOBUS", PATIENT)
    with terminal("boot", *guest(files, mode)) as it:
        it.wait_for(b"hangs")
        it.type(b"abc\x03\r")
        time.sleep(0.2)  # they are read by themselves
        it.type(b"\x01x")
        if mode != "wait":
            time.sleep(0.1)
            it.type(b"\x01x")
        assert it.end() == 4
        assert it.mode() == it.before
        assert shown_hung(it)


@pytest.mark.parametrize(
    ("number", "again", "status"),
    [
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, None, 143),
        (signal.SIGHUP, signal.SIGTERM, 129),
        (signal.SIGQUIT, signal.SIGTERM, 131),
    ],
)
def test_signals_end_it(
    files: Files,
    number: signal.Signals,
    again: signal.Signals | None,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One after the grace, two at once, with the status of the first (if both come together, of the lower one)."""
    if again is not None:
        monkeypatch.setattr(cli_rig, "IOBUS", PATIENT)
    with terminal("boot", *guest(files, "spin"), "--cpus", 1 if again else 2) as it:
        it.wait_for(b"hangs")
        assert it.mode() != it.before
        it.process.send_signal(number)
        if again is not None:
            time.sleep(0.4)
            it.process.send_signal(again)
        assert it.end() == status
        assert it.mode() == it.before
        assert shown_hung(it)


def test_the_display_is_left(files: Files) -> None:
    """The alternate screen too, before the sentence."""
    with terminal("boot", *guest(files), "--display", "text") as it:
        it.wait_for(b"hangs")
        it.process.send_signal(signal.SIGTERM)
        it.process.send_signal(signal.SIGINT)
        assert it.end() in (143, 130)
        assert it.mode() == it.before
        assert b"\x1b[?1049l" in it.shown.partition(b"iobus: a device hangs")[0]


def test_two_signals_at_once_are_no_reason_to_give_up(files: Files) -> None:
    """As when a terminal is closed, where the kernel and the shell both send one: what stops, stops cleanly."""
    trace = files.path / "trace.jsonl"
    kernel = files.kernel(say("ready") + HANG)
    with terminal("boot", "--kernel", kernel, "--trace", trace) as it:
        it.wait_for(b"ready")
        it.process.send_signal(signal.SIGHUP)
        it.process.send_signal(signal.SIGTERM)
        assert it.end() in (129, 143)
        assert b"given up" not in it.shown
    assert trace.read_text().endswith("\n")


def test_on_kvm(files: Files) -> None:
    """The same on the CPU of the host."""
    try:
        choose.make("kvm").close()
    except EngineError as exc:
        pytest.skip(f"no KVM: {exc}")
    image = files.write("image", say("ready") + STORE + HANG)
    for mode in ("sleep", "spin"):
        device = f"{files.device(HANGS)},mode={mode}"
        process = subprocess.Popen(
            [*IOBUS, "run", str(image), "--at", "0x100000", "--engine", "kvm", "--device", device],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        shown = b""
        while b"hangs" not in shown:
            shown += os.read(process.stdout.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert re.search(HUNG, said.decode())


def test_a_device_that_takes_its_time_is_not_given_up(files: Files) -> None:
    """It comes back within the grace: the end is the one that was asked for."""
    slow = HANGS.replace("time.sleep(1000)", "time.sleep(2)")
    device = files.device(slow)
    done = run_guest(files, STORE + HANG, "--device", device, "--timeout", "0.5")
    assert done.returncode == 5
    assert b"--timeout have passed" in done.stderr
