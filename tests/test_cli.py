"""The command: bad input, exit statuses, the console. With guests of a few instructions, made here."""

import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import (
    DEVICE,
    ECHO,
    EXAMPLE,
    HALT,
    HANG,
    IOBUS,
    LOAD,
    POWER_OFF,
    RAISE_RTS,
    RESET,
    STORE,
    TRIPLE_FAULT,
    Files,
    out,
    run_guest,
    say,
    terminal,
)
from kvm_rig import why_not
from test_boot_linux import bzimage

from iobus.boot.linux import EntryState
from iobus.cli import main, values
from iobus.cli.demo_device import IDENTITY, Scratch
from iobus.cli.devices import DeviceSpec
from iobus.cli.outcome import UsageError


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


# Bad input.

PLAIN = "class Mine:\n length = 4096\n def read(self, o, s): return 0\n def write(self, o, s, v): pass\n"

BAD: dict[str, tuple[Callable[[Files], list[object]], str]] = {
    "no command": (lambda f: [], "COMMAND"),
    "unknown command": (lambda f: ["fly"], "'fly'"),
    "unknown option": (lambda f: ["boot", "--fast"], "--fast"),
    "an option's beginning": (lambda f: ["boot", "--dev", "x"], "--dev"),
    "missing kernel": (lambda f: ["boot", "--kernel", "/nowhere/vmlinuz"], "/nowhere/vmlinuz does not exist"),
    "kernel is a directory": (lambda f: ["boot", "--kernel", f.path], "is a directory"),
    "no kernel": (lambda f: ["boot", "--kernel", f.write("k", "hello " * 1000)], "no Linux bzImage"),
    "truncated kernel": (
        lambda f: ["boot", "--kernel", f.write("k", bzimage(bytes(9999))[:5000])],
        "is truncated: it is 5000 bytes long",
    ),
    "missing initrd": (lambda f: ["boot", "--kernel", f.kernel(), "--initrd", "/nowhere/i"], "/nowhere/i does not"),
    "initrd larger than memory": (
        lambda f: ["boot", "--kernel", f.kernel(), "--initrd", f.write("i", bytes(40 << 20)), "--memory", "32M"],
        "is 41943040 bytes long",
    ),
    "memory too small for the kernel": (
        lambda f: ["boot", "--kernel", f.kernel(), "--memory", "2M"],
        "give the guest 24 MiB or more",
    ),
    "memory too small for a PC": (lambda f: ["boot", "--kernel", f.kernel(), "--memory", "4K"], "1 MiB to 64 GiB"),
    "memory too large": (lambda f: ["map", "--memory", "1000G"], "1 MiB to 64 GiB"),
    "memory not in pages": (lambda f: ["map", "--memory", "1000001"], "pages of 4096 bytes"),
    "memory no number": (lambda f: ["boot", "--memory", "lots"], "'lots' is no size"),
    "negative memory": (lambda f: ["boot", "--memory=-1M"], "1 MiB to 64 GiB"),
    "no guest to be had": (lambda f: ["boot"], "give files of your own"),
    "unknown engine": (lambda f: ["boot", "--engine", "steam"], "'steam'"),
    "unknown answer": (lambda f: ["boot", "--unclaimed", "maybe"], "'maybe'"),
    "no time": (lambda f: ["boot", "--timeout", "0"], "'0' is no time"),
    "not a number of seconds": (lambda f: ["boot", "--timeout", "nan"], "'nan' is no time"),
    "endless time": (lambda f: ["boot", "--timeout", "inf"], "'inf' is no time"),
    "trace file": (lambda f: ["boot", "--kernel", f.kernel(), "--trace", "/nowhere/t"], "trace file /nowhere/t"),
    "long command line": (lambda f: ["boot", "--kernel", f.kernel(), "--append", "x" * 3000], "at most 2047"),
    "device spec": (lambda f: ["map", "--device", "mine.py"], "FILE.py:CLASS@ADDR"),
    "device address": (lambda f: ["map", "--device", "mine.py:Mine@here"], "address 'here' is no number"),
    "no device address": (lambda f: ["map", "--device", "mine.py:Mine@"], "address '' is no number"),
    "device length": (lambda f: ["map", "--device", "mine.py:Mine@0xD0000000:long"], "length 'long' is no number"),
    "negative address": (lambda f: ["map", "--device", "mine.py:Mine@-1"], "is negative"),
    "device option": (lambda f: ["map", "--device", "mine.py:Mine@0xD0000000,3"], "'3' is no NAME=VALUE"),
    "option twice": (lambda f: ["map", "--device", "mine.py:Mine@0xD0000000,a=1,a=2"], "'a=2' is there twice"),
    "missing device file": (lambda f: ["map", "--device", "/nowhere/d.py:Mine@0xD0000000"], "does not exist"),
    "device file with a syntax error": (lambda f: ["map", "--device", f.device("class Mine(:")], "SyntaxError"),
    "device file that raises": (
        lambda f: ["map", "--device", f.device("\n1 / 0")],
        "ZeroDivisionError: division by zero",
    ),
    "device file that exits": (lambda f: ["map", "--device", f.device("raise SystemExit(3)")], "SystemExit: 3"),
    "device file that imports what is not there": (
        lambda f: ["map", "--device", f.device("import no_such_module_at_all")],
        "(line 1)",
    ),
    "no such class": (lambda f: ["map", "--device", f.device(PLAIN.replace("Mine", "Other"))], "it has Other"),
    "no class": (lambda f: ["map", "--device", f.device("Mine = 3")], "has no class 'Mine'"),
    "no device": (lambda f: ["map", "--device", f.device("class Mine: pass")], "has no method 'read'"),
    "no write": (
        lambda f: ["map", "--device", f.device("class Mine:\n def read(self, o, s): return 0")],
        "has no method 'write'",
    ),
    "refused option": (lambda f: ["map", "--device", f.device(PLAIN) + ",speed=3"], "Mine(speed=3)"),
    "refused value": (
        lambda f: [
            "map",
            "--device",
            f.device(PLAIN + " def __init__(self, n): raise ValueError('no\\nway')") + ",n=x",
        ],
        "Mine(n='x') of",
    ),
    "no length": (
        lambda f: ["map", "--device", f.device(PLAIN.replace("length", "size")).removesuffix(":0x1000")],
        "the length is None",
    ),
    "length 0": (lambda f: ["map", "--device", f.device(PLAIN).replace(":0x1000", ":0")], "the length is 0"),
    "on RAM": (lambda f: ["map", "--device", f.device(PLAIN).replace("0xd0000000", "0x9f000")], "overlaps RAM"),
    "on the chipset": (
        lambda f: ["map", "--device", f.device(PLAIN).replace("0xd0000000", "0xfebfff00")],
        "overlaps ioapic at [0xfec00000",
    ),
    "on the vCPU's device": (
        lambda f: ["map", "--device", f.device(PLAIN).replace("0xd0000000", "0xfee00ffc")],
        "overlaps lapic0",
    ),
    "on another device": (
        lambda f: ["map", "--device", f"{EXAMPLE}:Scratch@0xd0000800", "--device", f.device(PLAIN)],
        "overlaps Scratch at [0xd0000800",
    ),
    "beyond physical addresses": (
        lambda f: ["map", "--device", f.device(PLAIN).replace("0xd0000000", "0xfffffffff000")],
        "is beyond the",
    ),
    "name that is no text": (
        lambda f: ["map", "--device", f.device(PLAIN + " name = 5\n")],
        "Mine has the name 5; a region's name is a str",
    ),
    "device that exits": (
        lambda f: ["map", "--device", f.device("import sys\n" + PLAIN + " def __init__(self): sys.exit(3)")],
        "cannot be made: SystemExit: 3",
    ),
    "connect that raises": (
        lambda f: ["map", "--device", f.device(PLAIN + " def connect(self, pc): pc.irq(99)")],
        "connect(pc) failed: ValueError: interrupt 99",
    ),
    "placed that raises": (
        lambda f: ["map", "--device", f.device(PLAIN + " def placed(self, region): region.fly()")],
        "placed(region) failed: AttributeError",
    ),
    "an ACPI ID that is no text": (
        lambda f: ["map", "--device", f.device(PLAIN + " acpi_id = 5")],
        "Mine, with acpi_id: hardware ID 5 is no text",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_status_2(
    case: str, files: Files, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/command.md: status 2 and one line that names what is wrong."""
    monkeypatch.setenv("IOBUS_CACHE", str(files.path / "cache"))
    monkeypatch.setenv("PATH", str(files.path))  # no apt-get
    make, words = BAD[case]
    status = main([str(argument) for argument in make(files)])
    said, shown = capfd.readouterr()
    assert (status, said) == (2, "")
    assert shown.startswith("iobus: ") and shown.count("\n") == 1 and shown.endswith("\n")
    assert words in shown


def test_a_device_is_told_the_pc_before_it_is_on_the_bus(files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    """A device with connect(pc) is handed the machine."""
    body = PLAIN + " def connect(self, pc): print(self in [region.device for region in pc.machine.mmio.regions])"
    assert main(["map", "--device", files.device(body)]) == 0
    assert capfd.readouterr().out.startswith("False\n")


# What options mean.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("0x1F", 31), ("4K", 4096), ("0x10m", 16 << 20), ("2G", 2 << 30), ("-3", -3), ("007", 7),
        ("true", True), ("False", False), ("", ""), ("12x", "12x"), ("0x", "0x"), ("K", "K"), ("a=b", "a=b"),
    ],
)  # fmt: skip
def test_values_are_numbers_truth_values_or_strings(text: str, value: object) -> None:
    """NAME=VALUE: an integer if it reads as one, then true and false, else the string."""
    got = values.value(text)
    assert got == value and type(got) is type(value)


def test_a_device_spec_in_full() -> None:
    """Every part of FILE.py:CLASS@ADDR[:LENGTH][,NAME=VALUE...]; a path may hold what separates the others."""
    spec = DeviceSpec.parse("a:b@c,d/my.py:Mine@0xD000_0000:4K,irq=5,name=x:y@z,on=true")
    assert (spec.file, spec.name, spec.address, spec.length) == (Path("a:b@c,d/my.py"), "Mine", 0xD0000000, 4096)
    assert spec.options == {"irq": 5, "name": "x:y@z", "on": True}
    assert DeviceSpec.parse("my.py:Mine@16").length is None


def test_a_device_file_is_run_as_python_would(files: Files) -> None:
    """It imports its neighbours, may hold dataclasses, and is run once however many devices come from it."""
    files.write("iobus_test_neighbour.py", "VALUE = 0x1234")
    spec = files.device(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import iobus_test_neighbour\n"
        "@dataclass\n"
        "class Mine:\n"
        "    step: int = 1\n"
        "    def read(self, offset, size): return iobus_test_neighbour.VALUE + self.step\n"
        "    def write(self, offset, size, value): pass\n"
    )
    first, second = DeviceSpec.parse(f"{spec},step=3").make(), DeviceSpec.parse(spec).make()
    assert (first.read(0, 4), second.read(0, 4)) == (0x1237, 0x1235)
    assert type(first) is type(second)


def test_devices_beyond_a_bad_one_are_not_attached(files: Files) -> None:
    """A spec is refused as a whole: the error is a UsageError of its own making."""
    with pytest.raises(UsageError, match="has no 'Nobody'"):
        DeviceSpec.parse(f"{EXAMPLE}:Nobody@0xD0000000").make()


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    """--version prints it and leaves with 0."""
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capfd.readouterr().out == "iobus 0.1.0\n"


def test_map_shows_every_region_and_all_ram(capfd: pytest.CaptureFixture[str]) -> None:
    """A line for each: base, end, size, bus, priority, name, in the order of addresses of each bus."""
    assert main(["map", "--memory", "5G", "--device", f"{EXAMPLE}:Scratch@{DEVICE:#x}"]) == 0
    lines = [line.split(maxsplit=5) for line in capfd.readouterr().out.splitlines()]
    assert lines[0] == ["base", "end", "size", "bus", "priority", "name"]
    assert ["0x0", "0xa0000", "0xa0000", "mmio", "-", "RAM"] in lines
    assert ["0x100000000", "0x180000000", "0x80000000", "mmio", "-", "RAM"] in lines
    assert ["0xd0000000", "0xd0001000", "0x1000", "mmio", "0", "Scratch"] in lines
    assert ["0xfee00000", "0xfee01000", "0x1000", "vcpu0.mmio", "0", "lapic0"] in lines
    assert ["0x3f8", "0x400", "0x8", "pio", "0", "uart"] in lines
    for bus in ("mmio", "pio"):
        bases = [int(line[0], 16) for line in lines if line[3] == bus]
        assert bases == sorted(bases) and len(bases) > 3


def test_map_into_a_closed_pipe_says_so() -> None:
    """`iobus map | true`: one line, no traceback."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = subprocess.run([*IOBUS, "map"], stdout=gone, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"iobus: standard output cannot be written: Broken pipe\n")


def test_the_entry_state_as_registers() -> None:
    """boot.rst, "64-bit Boot Protocol": long mode on, CS __BOOT_CS 64-bit, DS, ES and SS __BOOT_DS, flat."""
    state = EntryState(rip=0x1000200, rsi=0x10000, rsp=0x20000, cr3=0x12000, gdt_base=0x11000, gdt_limit=31)
    registers = state.registers()
    assert (registers.rip, registers.rsi, registers.cr3, registers.efer) == (0x1000200, 0x10000, 0x12000, 0x500)
    assert registers.cs.selector == 0x10 and registers.cs.access & 0x2000  # L
    for segment in (registers.ds, registers.es, registers.ss):
        assert (segment.selector, segment.base, segment.limit) == (0x18, 0, 0xFFFFFFFF)
    assert registers.cpl == 0


def test_the_example_device() -> None:
    """Its docstring's table: ID, SCRATCH, READS; other sizes are declined; reset clears."""
    device = Scratch()
    assert device.read(0, 4) == IDENTITY
    device.write(4, 4, 0x12345678)
    assert (device.read(4, 4), device.read(8, 4), device.read(0x10, 4)) == (0x12345678, 3, 0)
    device.write(0, 4, 1)
    assert device.read(0, 4) == IDENTITY
    assert device.read(4, 1) is NotImplemented and device.write(4, 8, 0) is NotImplemented
    again = Scratch()
    again.restore(device.save())
    assert again.read(4, 4) == 0x12345678
    device.reset()
    assert (device.read(4, 4), device.read(8, 4)) == (0, 2)


# How a run ends.


@pytest.mark.parametrize(
    ("code", "arguments", "status", "words"),
    [
        (POWER_OFF, [], 0, ""),
        (RESET, ["--no-reboot"], 0, ""),
        (TRIPLE_FAULT, [], 3, "triple fault at rip 0x1000200"),
        (HANG, ["--timeout", "0.3"], 5, "the 0.3 seconds of --timeout have passed"),
        (LOAD, ["--unclaimed", "stop"], 6, "no device claims a 4-byte read of address 0xd0000000"),
        (STORE, ["--unclaimed", "stop"], 6, "no device claims a 4-byte write of 0x0 to address 0xd0000000"),
        (out(0x5678, 7), ["--unclaimed", "stop"], 6, "no device claims a 1-byte write of 0x7 to port 0x5678"),
        (HALT, [], 7, "halted with interrupts off"),
    ],
)  # fmt: skip
def test_statuses(files: Files, code: bytes, arguments: list[str], status: int, words: str) -> None:
    """docs/command.md, "Exit status"."""
    done = run_guest(files, code, *arguments)
    assert done.returncode == status
    said = done.stderr.decode()
    assert words in said and said.count("\n") == bool(words)
    assert done.stdout == b""


RAISES = PLAIN.replace("return 0", "return self.table[o]") + " table = {}\n"


def test_a_device_that_raises_ends_with_4_and_its_own_traceback(files: Files) -> None:
    """The sentence names device and access; the traceback is of the user's code alone."""
    done = run_guest(files, LOAD + HANG, "--device", files.device(RAISES))
    said = done.stderr.decode()
    assert done.returncode == 4
    assert said.startswith("iobus: Mine at region 'Mine': 4-byte read at address 0xd0000000 (offset 0x0): KeyError")
    assert "return self.table[o]" in said and said.endswith("KeyError: 0\n")
    assert said.count("File ") == 1


def test_a_device_that_answers_nonsense_ends_with_4(files: Files) -> None:
    """A value that does not fit the access is the device's error."""
    done = run_guest(files, LOAD + HANG, "--device", files.device(PLAIN.replace("return 0", "return 1 << 40")))
    assert done.returncode == 4
    assert done.stderr.decode().startswith("iobus: Mine at region 'Mine': 4-byte read")


def test_a_timer_that_raises_ends_with_4(files: Files) -> None:
    """A device's error outside an access is no different."""
    body = PLAIN + (
        " def connect(self, pc): pc.machine.clock.timer(self.fire, 'mine').arm(1000)\n"
        " def fire(self): raise RuntimeError('out of fuel')\n"
    )
    done = run_guest(files, HANG, "--device", files.device(body))
    assert done.returncode == 4
    assert b"RuntimeError: out of fuel" in done.stderr


def test_a_watched_event_that_raises_ends_with_4(files: Files) -> None:
    """What a doorbell leads to is the device's too: the sentence names its method, and the traceback is there."""
    body = PLAIN + (
        " def connect(self, pc): self.machine = pc.machine\n"
        " def placed(self, region): self.machine.watch(region.doorbell(0, 4), self.work)\n"
        " def work(self): 1 // 0\n"
    )
    done = run_guest(files, STORE + HANG, "--device", files.device(body))
    said = done.stderr.decode()
    assert done.returncode == 4
    assert re.match(r"iobus: watch\(.*Doorbell.*, <bound method Mine.work .*: ZeroDivisionError", said)
    assert said.endswith("ZeroDivisionError: integer division or modulo by zero\n")


def test_a_reset_that_raises_ends_with_4(files: Files) -> None:
    """A device that cannot return to power-on is named, with its traceback."""
    done = run_guest(files, RESET, "--device", files.device(PLAIN + " def reset(self): 1 // 0\n"))
    said = done.stderr.decode()
    assert done.returncode == 4
    assert said.startswith("iobus: reset() of Mine: ZeroDivisionError: integer division")
    assert said.endswith("ZeroDivisionError: integer division or modulo by zero\n")


@pytest.mark.parametrize("engine", ["unicorn", "kvm"])
@pytest.mark.parametrize("value", ["3", ""])
def test_a_device_that_exits_ends_with_4(files: Files, engine: str, value: str) -> None:
    """`sys.exit` in a callback is an error of the device's, not the command's status."""
    if engine == "kvm" and why_not():
        pytest.skip(why_not())
    body = "import sys\n" + PLAIN.replace("return 0", f"sys.exit({value})")
    done = run_guest(files, LOAD + HANG, "--engine", engine, "--device", files.device(body))
    said = done.stderr.decode()
    assert done.returncode == 4
    assert "iobus: Mine at region 'Mine': 4-byte read at address 0xd0000000 (offset 0x0): SystemExit" in said


def test_a_reset_starts_the_guest_anew(files: Files) -> None:
    """Devices return to power-on, the kernel is loaded again, RAM is not cleared: the third boot powers off."""
    # mov ebx, 0x9000; inc dword [rbx]; cmp dword [rbx], 3; jae over the reset
    count = b"\xbb\x00\x90\x00\x00\xff\x03\x83\x3b\x03\x73" + bytes((len(RESET),))
    done = run_guest(files, say("boot\n") + count + RESET + POWER_OFF)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"boot\n" * 3, b"")


def test_the_timeout_is_for_all_boots_together(files: Files) -> None:
    """A guest that resets for ever ends all the same."""
    begun = time.monotonic()
    done = run_guest(files, RESET, "--timeout", "0.5")
    assert done.returncode == 5 and b"the 0.5 seconds" in done.stderr
    assert time.monotonic() - begun < 20


def test_trace_to_a_file(files: Files) -> None:
    """A line for each access: time, r or w, bus, address, size, value, region, RIP; and those that nobody claims."""
    code = LOAD + STORE + out(0x5678, 7) + b"\xec" + POWER_OFF
    trace = files.path / "trace.txt"
    done = run_guest(files, code, "--device", files.device(PLAIN), "--trace", trace)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [re.fullmatch(r"(\S+) (.*) rip=(0x\w+)", line) for line in trace.read_text().splitlines()]
    assert all(lines)
    assert [line[2] for line in lines if line] == [
        "r vcpu0 mmio 0xd0000000 4 0x00000000 Mine",
        "w vcpu0 mmio 0xd0000000 4 0x00000000 Mine",
        "w vcpu0 pio 0x5678 1 0x07 (unclaimed)",
        "r vcpu0 pio 0x5678 1 0xff (unclaimed)",
        "w vcpu0 pio 0x604 2 0x3400 acpi-pm",
    ]
    times = [float(line[1]) for line in lines if line]
    assert times == sorted(times)
    assert all(0x1000200 <= int(line[3], 16) <= 0x1000200 + len(code) for line in lines if line)


def test_trace_to_standard_error(files: Files) -> None:
    """Without a file the lines go beside the guest's output; what nobody claims still reads as ones."""
    done = run_guest(files, LOAD + b"\x66\xba\xf8\x03\xee" + POWER_OFF, "--trace")
    assert (done.returncode, done.stdout) == (0, b"\xff")
    assert b" r vcpu0 mmio 0xd0000000 4 0xffffffff (unclaimed) rip=0x1" in done.stderr
    assert b" w vcpu0 pio 0x3f8 1 0xff uart rip=0x1" in done.stderr


def test_a_trace_that_cannot_be_kept_ends_the_run(files: Files) -> None:
    """A full disk is an error with one line, not a trace with a hole."""
    done = run_guest(files, say("x" * 2000) + POWER_OFF, "--trace", "/dev/full")
    assert (done.returncode, done.stderr) == (
        1,
        b"iobus: trace file /dev/full cannot be written: No space left on device\n",
    )


def test_standard_output_that_goes_away_ends_the_run(files: Files) -> None:
    """`iobus boot | true`: there is nobody to run for."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = subprocess.run(
            [*IOBUS, "boot", "--kernel", files.kernel(say("hello") + HANG)],
            stdin=subprocess.DEVNULL, stdout=gone, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"iobus: standard output cannot be written: Broken pipe\n")


# The console.


def test_piped_input_reaches_the_guest_as_it_is(files: Files) -> None:
    """Standard input that is no terminal is all the guest's, Ctrl-A too."""
    data = b"\x01x" + bytes(range(97, 113)) * 20 + b"q"
    done = run_guest(files, RAISE_RTS + ECHO, data=data)
    assert (done.returncode, done.stdout) == (0, data)


def test_piped_input_waits_until_the_guest_raises_rts(files: Files) -> None:
    """What a driver clears from the FIFO while it starts would be lost."""
    # mov ecx, 30000; then FCR = 7 as often: dec ecx; jnz
    clear = b"\xb9" + struct.pack("<I", 30000) + out(0x3FA, 0x07) + b"\xff\xc9\x75" + bytes((0x100 - 5,))
    done = run_guest(files, clear + RAISE_RTS + ECHO, data=b"all of it q")
    assert (done.returncode, done.stdout) == (0, b"all of it q")


def test_the_end_of_the_input_is_not_the_end_of_the_guest(files: Files) -> None:
    """At the end of standard input the guest runs on, and nothing hangs."""
    assert run_guest(files, RAISE_RTS + ECHO, "--timeout", "0.5", data=b"abc").stdout == b"abc"
    done = subprocess.run(
        f"{sys.executable} -m iobus boot --kernel {files.kernel(say('up') + POWER_OFF)} <&-",
        shell=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"up")


def test_typed_keys_reach_the_guest_and_ctrl_a_x_leaves(files: Files) -> None:
    """Raw mode: no echo, no line editing, Ctrl-C is the guest's; the terminal is as before afterwards."""
    with terminal("boot", "--kernel", files.kernel(say("ready") + ECHO)) as it:
        it.wait_for(b"ready")
        assert not it.mode()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        it.type(b"ab\x03\r\x01\x01c\x01dz")
        it.wait_for(b"readyab\x03\r\x01c\x01dz")
        it.type(b"\x01")
        time.sleep(0.05)
        it.type(b"x")
        assert it.end() == 0
        assert it.mode() == it.before
        assert it.shown.startswith(b"iobus: the console is the guest's; Ctrl-A X leaves\r\n")


BREAKS_DOWN = RAISES.replace("self.table[o]", "self.table[o] if o else 1 // 0")


@pytest.mark.parametrize(
    ("code", "arguments", "signal_number", "status", "words"),
    [
        (HANG, [], signal.SIGTERM, 128 + 15, b""),
        (HANG, [], signal.SIGHUP, 128 + 1, b""),
        (HANG, [], signal.SIGQUIT, 128 + 3, b""),
        (HANG, [], signal.SIGINT, 130, b"iobus: interrupted\r\n"),
        (HANG, ["--timeout", "0.5"], None, 5, b"--timeout have passed\r\n"),
        (TRIPLE_FAULT, [], None, 3, b"triple fault"),
        (LOAD, ["--unclaimed", "stop"], None, 6, b"no device claims"),
        (LOAD, ["DEVICE"], None, 4, b"ZeroDivisionError"),
        (POWER_OFF, [], None, 0, b""),
    ],
)  # fmt: skip
def test_the_terminal_is_restored_however_it_ends(
    files: Files, code: bytes, arguments: list[str], signal_number: int | None, status: int, words: bytes
) -> None:
    """Signals, the guest's end and errors all leave the terminal as it was."""
    if arguments == ["DEVICE"]:
        arguments = ["--device", files.device(BREAKS_DOWN)]
    with terminal("boot", "--kernel", files.kernel(say("ready") + code), *arguments) as it:
        it.wait_for(b"ready")
        if signal_number is not None:
            assert it.mode() != it.before
            it.process.send_signal(signal_number)
        assert it.end() == status
        assert it.mode() == it.before
        assert words in it.shown
        assert b"Traceback" not in it.shown or status == 4


def test_lines_of_ours_stand_on_their_own_on_a_raw_terminal(files: Files) -> None:
    """A trace on the terminal of the guest begins and ends its lines itself."""
    with terminal("boot", "--kernel", files.kernel(say("ready") + LOAD + POWER_OFF), "--trace") as it:
        assert it.end() == 0
        lines = it.shown.split(b"\r\n")
        assert any(b"4 0xffffffff (unclaimed) rip=" in line and line[:1].isdigit() for line in lines)
        assert b"r" in lines and b"\n" not in b"".join(lines)
