"""The fixture `guest`: commands, files, modules, devices and interrupts of a real Linux, all on one boot."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from iobus.bus import Device, DeviceError
from iobus.clock import TimerError
from iobus.doorbell import Event
from iobus.testing import Guest, GuestError, GuestTimeoutError, KernelError
from iobus.testing.build import ModuleBuildError
from iobus.testing.modules import NoSuchModuleError
from iobus.watcher import WatchError

pytestmark = pytest.mark.slow

AT = 0xD0000000


class Ticker(Device):
    """A value at 0, an interrupt at each write to 4; what goes wrong from 8 on, each in its own way."""

    length = 0x100

    def __init__(self) -> None:
        self.value = self.ticks = 0

    def connect(self, pc: Any) -> None:
        self.clock, self.line = pc.machine.clock, pc.irq(10, "ticker")
        self.timer = self.clock.timer(self.tick, "ticker")

    def tick(self) -> None:
        self.ticks += 1
        self.line.pulse()
        self.timer.arm(self.clock.now() + 1_000_000)

    def fail(self) -> None:
        raise ValueError("no such tick")

    def read(self, offset: int, size: int) -> Any:
        if offset == 8:
            raise KeyError("no such register")
        while offset == 12:
            pass
        return {16: 1 << 64, 20: "text"}.get(offset, self.value)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 24:
            os.kill(os.getpid(), signal.SIGINT)
        self.value = value


@pytest.fixture
def ticker(guest: Guest) -> Ticker:
    device = Ticker()
    guest.attach(device, at=AT)
    return device


def test_a_command_gives_status_and_output(guest: Guest) -> None:
    """Output and error output in their order, without an echo of the command, and not as on a terminal."""
    assert guest.run("echo one; echo two >&2; echo three; exit 7") == (7, b"one\ntwo\nthree\n")
    assert guest.run("kill -9 $$ & false").status == 1
    assert guest.run("cat; test -t 0 || test -t 1 || echo no terminal").output == "no terminal\n"
    assert guest.run("uname -s; pwd").output == "Linux\n/tmp\n"
    with pytest.raises(GuestError, match=r"'ls /none' ended with status 1:\nls: /none: No such file"):
        guest.run("ls /none", check=True)


def test_scripts(guest: Guest) -> None:
    """Of many lines, with quotes and functions; each is a shell of its own; one that is too long is refused."""
    script = """
        greet() {
            echo "it's $1"
        }
        value=7
        for name in one two; do greet $name; done
    """
    assert guest.run(script).output == "it's one\nit's two\n"
    assert guest.run("echo ${value:-unset}; " + "true; " * 20_000).output == "unset\n"
    with pytest.raises(ValueError, match="a script of 1048576 bytes: give it as a file"):
        guest.run("#" * (1 << 20))
    assert guest.run("echo on").output == "on\n"


def test_any_bytes_come_out(guest: Guest) -> None:
    """Also those by which the agent marks the end, and line ends of every kind."""
    data = random.Random(1).randbytes(5000) + b"\x01#0123 0\x02\r\n\x03\x04\x1c"
    guest.put(data, "/tmp/any")
    assert guest.run("cat any").data == data


@pytest.mark.parametrize("size", [0, 1, 4096, (3 << 20) + 1])
def test_any_file_comes_in(guest: Guest, tmp_path: Path, size: int) -> None:
    """Empty, and larger than the window it comes by; a program stays one; names with blanks and quotes."""
    file = tmp_path / "it's a file"
    file.write_bytes(random.Random(size).randbytes(size))
    file.chmod(0o755)
    assert guest.put(file) == "/tmp/it's a file"
    shown = guest.run("stat -c '%s %a' it*; md5sum it*").output.split()
    assert shown[:3] == [str(size), "755", hashlib.md5(file.read_bytes()).hexdigest()]
    with pytest.raises(GuestError, match=r"/etc/passwd cannot be written in the guest: .*Read-only file system"):
        guest.put(b"root", "/etc/passwd")


def test_a_command_that_does_not_end(guest: Guest) -> None:
    """It is ended, its output so far is in the error, and the guest is there for the next command."""
    with pytest.raises(GuestTimeoutError, match=r"sleep 1000' did not end in 0.5 s; Ctrl-C ended it.*\nbegun"):
        guest.run("echo begun; sleep 1000", timeout=0.5)
    with pytest.raises(GuestTimeoutError, match="Ctrl-C ended it"):
        guest.run("trap : INT; while :; do :; done", timeout=0.5)
    assert guest.run("echo on").output == "on\n"


def test_ctrl_c(guest: Guest, ticker: Ticker) -> None:
    """The user's Ctrl-C comes out of `run`, wherever the guest is, and the guest can be used on."""
    for command in (f"devmem {AT + 24:#x} 32 1; sleep 1000", f"devmem {AT + 24:#x} 32 1; while :; do :; done"):
        with pytest.raises(KeyboardInterrupt):
            guest.run(command)
        assert guest.run("echo on").output == "on\n"


def test_a_device_while_the_guest_runs(guest: Guest, ticker: Ticker) -> None:
    """It answers at once, its accesses are kept, and it is no more when its region is detached."""
    assert guest.run(f"devmem {AT:#x} 32 0x1234; devmem {AT:#x} 32").output == "0x00001234\n"
    assert ticker.value == 0x1234
    assert [(access.offset, access.size, access.is_write) for access in guest.accesses] == [(0, 4, True), (0, 4, False)]
    guest.regions[0].detach()
    assert guest.run(f"devmem {AT:#x} 32").output == "0xFFFFFFFF\n"
    with pytest.raises(ValueError, match="Ticker at 0x1000000: the guest has RAM there"):
        guest.attach(Ticker(), at=0x1000000)


def test_time_goes_on_while_a_test_waits(guest: Guest, ticker: Ticker) -> None:
    """`wait_for` lets the guest and its devices run until something is so; between calls the guest stands still."""
    ticker.timer.arm(0)
    guest.wait_for(lambda: guest.pc.pins[10].count >= 3)
    assert ticker.ticks >= 3
    with pytest.raises(TimeoutError, match=r"not true after 0.1 s"):
        guest.wait_for(lambda: False, seconds=0.1)


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (8, "KeyError: 'no such register'"),
        (12, r"DeviceTimeoutError: no answer after 0.5 s, at test_guest.py:\d+ in read"),
        (16, "read returned 0x10000000000000000; it must be an int from 0 to 0xffffffff"),
        (20, "read returned 'text'; it must be an int"),
    ],
)
def test_a_device_that_fails(guest: Guest, ticker: Ticker, offset: int, message: str) -> None:
    """It raises where the test made the guest run; the guest reads all ones, and goes on."""
    guest.time_limit = 0.5
    with pytest.raises(DeviceError, match=rf"Ticker .*4-byte read at address {AT + offset:#x} .*{message}"):
        guest.run(f"devmem {AT + offset:#x} 32 >/tmp/read")
    assert guest.run(f"cat /tmp/read; devmem {AT:#x} 32").output == "0xFFFFFFFF\n0x00000000\n"


def test_a_timer_that_fails(guest: Guest, ticker: Ticker) -> None:
    """So does a timer's callback."""
    ticker.clock.timer(ticker.fail, "bad").arm(0)
    with pytest.raises(TimerError, match=r"timer 'bad' .*ValueError: no such tick"):
        guest.run("sleep 1")
    assert guest.run("echo on").output == "on\n"


def test_modules_of_the_package(guest: Guest, tmp_path: Path) -> None:
    """With what they need, once; built-in ones need nothing; an unknown one is named."""
    guest.modprobe("raid1")
    guest.modprobe("raid1")
    guest.modprobe("null_blk", nr_devices=2)
    loaded = guest.run("cut -d' ' -f1 /proc/modules; ls /sys/block").output.split()
    assert {"raid1", "md_mod", "null_blk", "nullb1"} <= set(loaded)
    guest.modprobe("8250")
    with pytest.raises(NoSuchModuleError, match="no module 'raid2'"):
        guest.modprobe("raid2")
    (tmp_path / "bad.ko").write_bytes(bytes(100))
    with pytest.raises(GuestError, match=r"bad.ko cannot be loaded: insmod: .*invalid module format"):
        guest.insmod(tmp_path / "bad.ko")


class Told(Ticker):
    """A ticker that Linux counts the interrupts of."""

    acpi_id = "ACPI0013"

    def __init__(self, irq: int = 16) -> None:
        super().__init__()
        self.irq = irq

    def connect(self, pc: Any) -> None:
        self.line = pc.irq(self.irq, "told")

    def write(self, offset: int, size: int, value: int) -> None:
        self.line.set(bool(value))


@pytest.mark.parametrize("again", [False, True])
def test_a_device_that_is_plugged_in(guest: Guest, again: bool) -> None:
    """Linux finds it by ACPI and counts its interrupts, from 0 in each test; its driver lets go of it when it goes."""
    drivers = "/sys/bus/platform/drivers/acpi-ged"
    assert guest.run(f"ls -d {drivers}/ACPI0013:* | wc -l").output == "1\n"  # what plugs the others in
    guest.attach(Told(), at=AT)
    guest.attach(Told(irq=18), at=AT + 0x1000)
    guest.run(f"for value in 1 0 1 0; do devmem {AT:#x} 32 $value; done; devmem {AT + 0x1000:#x} 32 1")
    assert (guest.interrupts(16), guest.interrupts(18), guest.pc.pins[16].count) == (2, 1, 2)
    assert guest.run(f"ls -d {drivers}/ACPI0013:* | wc -l").output == "3\n"


def test_one_line_has_one_trigger(guest: Guest) -> None:
    """What Linux cannot do is said: a line of a Generic Event Device, and then of one that is level-triggered."""
    guest.attach(Told(irq=17), at=AT)
    other = Told(irq=17)
    other.acpi_id = "LNRO0005"
    with pytest.raises(
        ValueError, match=r"LNRO0005 has interrupt 17 as an earlier ACPI0013 had.*use another interrupt"
    ):
        guest.attach(other, at=AT + 0x1000)


def test_a_module_that_does_not_build(guest: Guest, tmp_path: Path) -> None:
    """The compiler's words, without the places where it was built."""
    source = tmp_path / "wrong.c"
    source.write_text("#include <linux/module.h>\nint init_module(void) { return nothing; }\n")
    with pytest.raises(
        ModuleBuildError, match=r"wrong.c does not build for [\w.-]+:\nwrong.c: In function.*\nwrong.c:2"
    ):
        guest.build(source)


def test_what_a_watched_event_raises_the_test_gets(guest: Guest) -> None:
    """In the call that lets the guest run, or at the test's end where there is none: not in another test."""
    event = Event()
    guest.machine.watch(event, lambda: 1 // 0)
    event.ring()
    with pytest.raises(WatchError, match="ZeroDivisionError"):
        guest.wait_for(lambda: False, 60)
    event.ring()
    with pytest.raises(WatchError, match="ZeroDivisionError"):
        guest.check()
    guest.machine.unwatch(event)
    assert guest.run("true").status == 0


def test_a_complaint_that_is_expected(guest: Guest) -> None:
    """It has to come, and to be the one; then the test does not fail for it."""
    with guest.kernel_error("made up, not by the kernel"):
        guest.run("echo 'BUG: made up, not by the kernel' >/dev/kmsg")
    with (
        pytest.raises(KernelError, match="was to complain of 'oops':\nit did not complain at all"),
        guest.kernel_error("oops"),
    ):
        guest.run("true")
    assert "made up" in guest.log
