"""Debian's unmodified 64-bit kernel under `iobus boot`: interrupts, devices, resets, the shell. Whole boots."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_rig import DEVICE, EXAMPLE, Files, iobus, terminal

from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd

pytestmark = pytest.mark.slow

SECONDS = 120
MOUNT = "mount -t proc proc /proc\n"
OFF = "poweroff -f\n"


@pytest.fixture(scope="session")
def busybox() -> bytes:
    """BusyBox; the kernel is in the cache afterwards, so that each boot finds it there."""
    try:
        debian.cloud_kernel()
        return debian.busybox().read_bytes()
    except debian.GuestUnavailableError as exc:
        pytest.skip(f"no guest: {exc}")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def boot(
    files: Files, busybox: bytes, script: str, *arguments: object, append: str = "quiet", data: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    """Boot the kernel with an initrd that runs `script`."""
    initrd = files.write("initrd", busybox_initrd(busybox, script))
    return iobus("boot", "--initrd", initrd, "--append", append, "--timeout", SECONDS, *arguments, data=data)


def lines(done: "subprocess.CompletedProcess[bytes]") -> list[str]:
    return done.stdout.decode(errors="replace").splitlines()


def interrupts(shown: list[str]) -> list[dict[str, tuple[int, str]]]:
    """Each /proc/interrupts shown: by its first column, the count and what follows."""
    tables: list[dict[str, tuple[int, str]]] = []
    for line in shown:
        if line.split() == ["CPU0"]:
            tables.append({})
        elif tables and (match := re.fullmatch(r" *(\w+): +(\d+) *(.*)", line)):
            tables[-1][match[1]] = int(match[2]), match[3]
    return tables


TWO_TABLES = f"{MOUNT}cat /proc/interrupts\nsleep 1\ncat /proc/interrupts\n{OFF}"


def test_interrupts_by_io_apic_and_local_apic_timer(files: Files, busybox: bytes) -> None:
    """The ISA lines go through the IO-APIC, and the local APIC's timer ticks on."""
    done = boot(files, busybox, TWO_TABLES)
    assert (done.returncode, done.stderr) == (0, b"")
    first, second = interrupts(lines(done))
    assert first["0"][1].split() == ["IO-APIC", "2-edge", "timer"]
    assert first["4"][1].split() == ["IO-APIC", "4-edge", "ttyS0"]
    assert first["9"][1].split() == ["IO-APIC", "9-fasteoi", "acpi"]
    assert second["4"][0] > first["4"][0]
    assert second["LOC"][0] > first["LOC"][0] > 10
    assert first["ERR"][0] == first["MIS"][0] == first["SPU"][0] == 0


def test_the_hpet_ticks_in_place_of_the_pit(files: Files, busybox: bytes) -> None:
    """Linux finds it by its table, lets it tick until the LAPIC does, takes it for the RTC, and keeps time by it."""
    clocks = "/sys/devices/system/clocksource/clocksource0"
    script = (
        f"{MOUNT}mount -t sysfs sysfs /sys\ndmesg | grep hpet\ngrep '^Clock Event' /proc/timer_list\n"
        f"cat /proc/interrupts {clocks}/available_clocksource\necho hpet > {clocks}/current_clocksource\n"
        f"cat {clocks}/current_clocksource\na=$(cut -d. -f1 /proc/uptime)\nsleep 3\n"
        f"echo slept $(($(cut -d. -f1 /proc/uptime) - a))\ndmesg | grep -i unstable\n{OFF}"
    )
    done = boot(files, busybox, script)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = lines(done)
    for words in (
        "hpet0: at MMIO 0xfed00000, IRQs 2, 8, 0",
        "3 comparators, 64-bit 100.000000 MHz counter",
        "hpet irqs",
    ):
        assert any(words in line for line in shown), words
    assert "Clock Event Device: hpet" in shown and not any("Event Device: pit" in line for line in shown)
    assert "tsc hpet acpi_pm " in shown and "hpet" in shown
    assert "slept 3" in shown or "slept 4" in shown
    assert interrupts(shown)[0]["0"][0] > 10
    assert not any("unstable" in line for line in shown)


def test_interrupts_by_pic_and_pit(files: Files, busybox: bytes) -> None:
    """The same kernel without APICs and ACPI: the 8259s deliver, the 8254 ticks. It cannot power off: it resets."""
    script = TWO_TABLES.replace("poweroff", "reboot")
    done = boot(files, busybox, script, "--no-reboot", append="quiet noapic nolapic acpi=off")
    assert (done.returncode, done.stderr) == (0, b"")
    first, second = interrupts(lines(done))
    assert first["0"][1].split() == ["XT-PIC", "timer"]
    assert first["4"][1].split() == ["XT-PIC", "ttyS0"]
    assert second["0"][0] - first["0"][0] > 20
    assert second["4"][0] > first["4"][0]


def test_devmem_reads_and_writes_a_users_device(files: Files, busybox: bytes) -> None:
    """The tutorial's session: ID, SCRATCH, READS, and a size the device declines."""
    script = (
        f"for a in '0 32' '4 32 0xCAFE' '4 32' '8 32' '0 8'; do set -- $a\n"
        f'echo "$a:$(devmem $(({DEVICE:#x} + $1)) $2 $3)"; done\n{OFF}'
    )
    trace = files.path / "trace.txt"
    spec = f"{EXAMPLE}:Scratch@{DEVICE:#x}:0x1000"
    done = boot(files, busybox, script, "--device", spec, "--trace", trace)
    assert (done.returncode, done.stderr) == (0, b"")
    for line in ("0 32:0x00010B05", "4 32 0xCAFE:", "4 32:0x0000CAFE", "8 32:0x00000003", "0 8:0xFF"):
        assert line in lines(done)
    traced = [line.rpartition(" rip=")[0] for line in trace.read_text().splitlines()]
    accesses = [line.split(maxsplit=1)[1] for line in traced if "0xd00000" in line]
    assert accesses == [
        "r vcpu0 mmio 0xd0000000 4 0x00010b05 Scratch",
        "w vcpu0 mmio 0xd0000004 4 0x0000cafe Scratch",
        "r vcpu0 mmio 0xd0000004 4 0x0000cafe Scratch",
        "r vcpu0 mmio 0xd0000008 4 0x00000003 Scratch",
        "r vcpu0 mmio 0xd0000000 1 0xff (unclaimed)",
    ]


def test_a_device_interrupts_the_guest(files: Files, busybox: bytes) -> None:
    """A device with connect(pc) drives an interrupt line: the guest's count follows its writes."""
    spec = files.device(
        "class Mine:\n"
        "    def connect(self, pc): self.line = pc.irq(1, 'mine')\n"
        "    def read(self, offset, size): return 0\n"
        "    def write(self, offset, size, value):\n"
        "        self.line.set(True)\n"
        "        self.line.set(False)\n"
    )
    poke = f"i=0; while [ $i -lt 20 ]; do devmem {DEVICE:#x} 32 1; i=$((i + 1)); done\n"
    done = boot(files, busybox, f"{MOUNT}cat /proc/interrupts\n{poke}cat /proc/interrupts\n{OFF}", "--device", spec)
    assert (done.returncode, done.stderr) == (0, b"")
    first, second = interrupts(lines(done))
    assert first["1"][1].split() == ["IO-APIC", "1-edge", "i8042"]
    assert second["1"][0] - first["1"][0] == 20


def test_a_device_that_raises_stops_the_guest(files: Files, busybox: bytes) -> None:
    """Status 4, the sentence and the traceback, after what the guest had shown before."""
    body = (
        "class Mine:\n"
        "    def read(self, offset, size): return 0\n"
        "    def write(self, offset, size, value): raise RuntimeError('on fire')\n"
    )
    script = f"echo before\ndevmem {DEVICE:#x} 32 7\necho after\n{OFF}"
    done = boot(files, busybox, script, "--device", files.device(body))
    assert done.returncode == 4
    assert "before" in lines(done) and "after" not in lines(done)
    assert b"4-byte write of 0x7 at address 0xd0000000" in done.stderr
    assert done.stderr.endswith(b"RuntimeError: on fire\n")


def test_an_unclaimed_access_stops_the_guest(files: Files, busybox: bytes) -> None:
    """Linux soon asks for something that is not there."""
    done = boot(files, busybox, OFF, "--unclaimed", "stop")
    assert done.returncode == 6
    assert re.fullmatch(rb"iobus: no device claims a \d-byte .* 0x[0-9a-f]+\n", done.stderr)


def test_a_guest_that_reboots_comes_back(files: Files, busybox: bytes) -> None:
    """Reset and booted again until the device has counted three boots; then it powers off."""
    spec = files.device(
        "class Mine:\n"
        "    boots = 0\n"
        "    def read(self, offset, size):\n"
        "        self.boots += 1\n"
        "        return self.boots\n"
        "    def write(self, offset, size, value): pass\n"
    )
    script = f"boots=$(devmem {DEVICE:#x} 32)\necho boot $boots\n[ $boots = 0x00000003 ] && {OFF}reboot -f\n"
    done = boot(files, busybox, script, "--device", spec)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [line for line in lines(done) if line.startswith("boot ")] == [f"boot 0x0000000{n}" for n in (1, 2, 3)]


def test_the_time_out_of_a_guest_that_sleeps(files: Files, busybox: bytes) -> None:
    """A guest that is idle in user space is stopped all the same."""
    begun = time.monotonic()
    done = boot(files, busybox, "echo asleep\nsleep 1000\n", "--timeout", 15)
    assert done.returncode == 5 and b"the 15 seconds" in done.stderr
    assert "asleep" in lines(done)
    assert time.monotonic() - begun < 40


def test_a_panic_is_a_reset_when_the_kernel_is_told_so(files: Files, busybox: bytes) -> None:
    """init's end panics the kernel, which then resets: --no-reboot leaves."""
    done = boot(files, busybox, "exit 3\n", "--no-reboot", append="quiet panic=-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Attempted to kill init! exitcode=0x00000300" in done.stdout


def test_commands_from_a_pipe(busybox: bytes) -> None:
    """The guest that iobus brings along runs what is piped into it; nothing of it is lost."""
    commands = b"stty -echo\necho 'sum:' $((6 * 7))\n" + b"true\n" * 50 + b"echo 'last:' $((1 + 1))\nexit\n"
    done = iobus("boot", "--append", "quiet", "--timeout", SECONDS, data=commands)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"sum: 42\r\n" in done.stdout and b"last: 2\r\n" in done.stdout


def test_a_session_at_the_terminal(busybox: bytes) -> None:
    """Typed commands, Ctrl-C for the guest's program, and exit, which powers off."""
    with terminal("boot", "--append", "quiet", "--timeout", SECONDS) as it:
        it.wait_for(b"# ")
        it.type(b"echo $((6 * 7))\r")
        it.wait_for(b"\n42\r\n")
        it.type(b"echo sleeping; sleep 1000\r")
        it.wait_for(b"\nsleeping\r\n")
        time.sleep(0.3)
        it.type(b"\x03")
        it.type(b"echo status $?\r")
        it.wait_for(b"\nstatus 130\r\n")
        it.type(b"exit\r")
        assert it.end() == 0
        assert it.mode() == it.before


def test_the_demo(busybox: bytes) -> None:
    """`iobus demo`: the accesses between the lines of the guest's console, the summary, status 0."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "iobus", "demo"], stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    shown = lines(done)
    values = [line for line in shown if re.fullmatch(r"0x[0-9A-F]{8}", line)]
    assert values == ["0x00010B05", "0x00000000", "0x00C0FFEE", "0x00000004"]
    marks = [line for line in shown if line.startswith("[iobus] ")]
    accesses = [line for line in marks if "the guest reads" in line or "the guest writes" in line]
    assert len(accesses) == 5 and accesses[2].endswith("writes SCRATCH <- 0x00c0ffee  (4 bytes at 0xd0000004)")
    # An access stands between the command that made it and the value it gave.
    at = shown.index(accesses[0])
    assert shown[at - 1] == "# busybox devmem 0xd0000000 32" and shown[at + 1] == "0x00010B05"
    assert any(re.fullmatch(r"\[iobus\] +5  Scratch \(mmio 0xd0000000\)", line) for line in marks)
    assert any("Boot to user space" in line for line in marks)
    assert time.monotonic() - begun < 60
