"""`iobus top`: it finds running guests, counts only while somebody looks, and says what it cannot do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_rig import ECHO, IOBUS, Files, iobus, say, terminal
from rich.console import Console

from iobus.cli.monitor import Monitor, counting, directory
from iobus.cli.top import tables
from iobus.clock import SteppedClock
from iobus.pc.pc import Pc


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own, with a name short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="iobus-test-") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def text_of(before: dict[str, Any], now: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(tables(before, now, "1"))
    return console.export_text()


def test_counts_are_of_what_happens_while_somebody_looks() -> None:
    """Accesses, interrupt lines and unclaimed addresses are counted; afterwards the path remembers again."""
    pc = Pc(clock=SteppedClock())
    path = pc.machine.vcpus[0].pio_path
    path.read(0x3FD, 1)
    with counting(pc) as counts:
        for _ in range(3):
            path.read(0x3FD, 1)
        path.write(0x3FF, 1, 7)
        pc.irq(5, "probe").pulse()
        found = counts()
    path.read(0x3FD, 1)
    path.read(0x3FD, 1)
    (bus, base, name, reads, writes, taken) = found["regions"][0]
    assert (bus, base, name, reads, writes) == ("pio", 0x3F8, "uart", 3, 1)
    assert taken > 0
    assert ["irq5", "probe", 1] in found["interrupts"]
    assert path.reads[1][0x3FD]
    assert json.loads(json.dumps(found)) == found


def test_an_address_is_whole_on_a_narrow_terminal() -> None:
    """Of 80 columns the base of a region and an unclaimed address get what they need."""
    now = {
        "time": 10**9,
        "regions": [["vcpu0.mmio", 0xFEE00000, "local-apic", 123_456, 123_456, 123_456_789]],
        "interrupts": [],
        "unclaimed": [["mmio", 0xE0000000, "read", 12]],
    }
    text = text_of({**now, "time": 0, "regions": []}, now, width=80)
    assert "0xfee00000" in text
    assert "0xe0000000" in text


def test_a_rate_is_of_the_guests_time_between_two_snapshots() -> None:
    """200 reads in half a second of the guest's time are 400 a second; the busiest device comes first."""
    before = {"time": 10**9, "regions": [["pio", 0x3F8, "uart", 100, 0, 0]], "interrupts": [], "unclaimed": []}
    now = {
        "time": 15 * 10**8,
        "regions": [["mmio", 0xD0000000, "[bold]quiet", 1, 1, 50], ["pio", 0x3F8, "uart", 300, 0, 60_000]],
        "interrupts": [["irq4", "com1", 9]],
        "unclaimed": [["mmio", 0xE0000000, "read", 12]],
    }
    lines = [line.split("│") for line in text_of(before, now).splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["uart", "pio", "0x3f8", "400", "0", "300", "200"]
    assert cells[1] == ["[bold]quiet", "mmio", "0xd0000000", "2", "2", "2", "25"]
    assert ["irq4", "com1", "18", "9"] in cells
    assert ["mmio", "0xe0000000", "read", "12"] in cells


def test_a_running_guest_is_found_and_shown(files: Files) -> None:
    """While a guest polls its UART, `iobus top` shows it, printed once where there is no terminal."""
    with terminal("boot", "--kernel", files.kernel(say("ready") + ECHO)) as guest:
        guest.wait_for(b"ready")
        done = iobus("top")
        assert (done.returncode, done.stderr) == (0, b"")
        assert f"guest of process {guest.process.pid}" in done.stdout.decode()
        assert "uart" in done.stdout.decode()
        with terminal("top", guest.process.pid) as top:
            top.wait_for(b"uart")
            guest.type(b"q")
            assert guest.end() == 0
            assert top.end() == 0
            assert b"has ended" in top.shown
    assert list(directory().iterdir()) == []


def test_how_it_is_left(files: Files) -> None:
    """Ctrl-C leaves it with 130 and the guest runs on; output that cannot be written is one line and status 1."""
    with terminal("boot", "--kernel", files.kernel(say("ready") + ECHO)) as guest:
        guest.wait_for(b"ready")
        with terminal("top") as top:
            top.wait_for(b"uart")
            top.process.send_signal(signal.SIGINT)
            assert top.end() == 130
            assert b"Traceback" not in top.shown
        with open("/dev/full", "wb") as full:  # noqa: PTH123 as the shell has it
            done = subprocess.run([*IOBUS, "top"], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (
            1,
            b"iobus: standard output cannot be written: No space left on device\n",
        )
        guest.type(b"q")
        assert guest.end() == 0


def test_no_guest_and_several_guests_are_told() -> None:
    """One line that says what to do."""
    assert iobus("top").stderr == b"iobus: no guest of yours is running; start one with iobus boot\n"
    assert iobus("top", 1).stderr == b"iobus: process 1 runs no guest of yours\n"
    listeners = []
    ended = [subprocess.Popen(["true"]) for _ in range(2)]
    assert [process.wait() for process in ended] == [0, 0]
    pids = sorted(str(process.pid) for process in ended)
    for pid in pids:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory() / f"{pid}.sock"))
        listener.listen()
        listeners.append(listener)
    assert iobus("top").stderr.decode() == f"iobus: several guests are running: say which, of {', '.join(pids)}\n"
    for listener in listeners:
        listener.close()
    assert b"no guest of yours" in iobus("top").stderr  # their processes were killed: what they left is cleared
    assert list(directory().iterdir()) == []


def test_a_guest_that_starts_clears_what_killed_ones_left() -> None:
    """The socket of a process that is gone goes; that of one that lives, and what is no guest's, stay."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with socket.socket(socket.AF_UNIX) as stale, socket.socket(socket.AF_UNIX) as other:
        stale.bind(str(directory() / f"{ended.pid}.sock"))
        other.bind(str(directory() / f"{os.getppid()}.sock"))
    (directory() / "notes.sock").touch()
    with Monitor(Pc(clock=SteppedClock()), lambda _: None):
        left = {path.name for path in directory().iterdir()}
    assert left == {f"{os.getppid()}.sock", f"{os.getpid()}.sock", "notes.sock"}


def test_what_listens_is_kept_though_no_process_here_has_its_number() -> None:
    """It may be in another container, which shares the directory and counts processes by itself."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with socket.socket(socket.AF_UNIX) as listener:
        path = directory() / f"{ended.pid}.sock"
        listener.bind(str(path))
        listener.listen()
        directory()
        assert path.exists()
    directory()
    assert not path.exists()


def test_a_directory_that_others_can_enter_is_not_used(runtime: Path) -> None:
    """Somebody else could have made it: no socket in it is trusted, and a guest runs without one."""
    (runtime / "iobus").mkdir(mode=0o755)
    assert b"not a directory that only user" in iobus("top").stderr
    said: list[str] = []
    with Monitor(Pc(clock=SteppedClock()), said.append):
        pass
    assert "iobus top will not find this guest" in said[0]
