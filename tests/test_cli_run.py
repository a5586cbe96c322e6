"""`iobus run`: what boots how, its statuses and its errors. With guests of a few instructions, made here."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import HALT, HANG, Files, iobus, out
from images import MIB, Load, assembled, elf, multiboot, multiboot2, note
from test_boot_linux import bzimage

from iobus.cli import main

# 16-, 32- and 64-bit code alike.
END = b"\xb0\x05\xe6\xf4" + HANG  # mov al, 5; out 0xf4, al
SHUTDOWN = b"\x66\xba\x00\x89\x66\x90" + b"".join(bytes((0xB0, letter, 0xEE)) for letter in b"Shutdown") + HANG


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def protected(code: bytes, head: bytes = b"") -> bytes:
    """A Multiboot 1 image that runs `code` in 32-bit protected mode."""
    head = head or multiboot()
    return elf([Load(MIB, head + code)], MIB + len(head))


@pytest.mark.parametrize(
    ("image", "arguments"),
    [
        (bzimage(bytes(0x200) + END), []),
        (bzimage(END + bytes(0x200), xloadflags=0), []),
        (protected(END), []),
        (protected(END, multiboot2()), []),
        (elf([Load(MIB, END)], 0, bits=64, notes=note(b"Xen", 18, struct.pack("<Q", MIB))), []),
        (END, ["--at", "0x7C00"]),
        (END, ["--at", "1M"]),
    ],
    ids=["64-bit Linux", "32-bit Linux", "Multiboot", "Multiboot 2", "PVH", "real mode", "flat"],
)
def test_each_kind_of_image_runs_and_ends_itself(files: Files, image: bytes, arguments: list[str]) -> None:
    """Its first instructions write 5 to the debug exit port: status 5 * 2 + 1, and nothing is said."""
    done = iobus("run", files.write("image", image), "--memory", "64M", "--timeout", 30, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (11, b"", b"")


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (b"\x31\xc0\xe7\xf4" + HANG, 1, ""),  # xor eax, eax; out 0xf4, eax: a test that passed
        (b"\xb8\xff\xff\xff\xff\xe7\xf4" + HANG, 0xFF, ""),
        (b"\xb8\x80\x00\x00\x00\xe7\xf4" + HANG, 1, ""),  # a status has 8 bits
        (b"\x66\xba\x00\x89" + b"".join(bytes((0xB0, letter, 0xEE)) for letter in b"ShShutdown") + HANG, 0, ""),
        (HALT, 7, "halted with interrupts off"),
        (b"\x0f\x0b", 3, "triple fault"),
        (HANG, 5, "the 1 seconds of --timeout"),
    ],
)
def test_statuses(files: Files, code: bytes, status: int, words: str) -> None:
    """docs/guests.md: the debug exit's, "Shutdown", and those of `iobus boot`."""
    done = iobus("run", files.write("image", protected(code)), "--timeout", 1 if status == 5 else 30)
    assert done.returncode == status
    assert words in done.stderr.decode() and bool(words) == bool(done.stderr)


def test_the_serial_line_and_the_debug_console_are_standard_output(files: Files) -> None:
    """Port 0x402 reads 0xE9; what is written to it and to COM1 comes out in order."""
    code = out(0x3F8, *b"one\n") + b"\x66\xba\x02\x04\xec\xee" + out(0x402, *b"two\n") + END
    done = iobus("run", files.write("image", protected(code)), "--timeout", 30)
    assert (done.returncode, done.stdout, done.stderr) == (11, b"one\n\xe9two\n", b"")


def test_a_guest_gets_its_command_line_and_modules(files: Files) -> None:
    """It writes the strings to the debug console: the kernel's, the module's, the module itself."""
    code = assembled("""
        bc 00 00 20 00  ; mov esp, 0x200000
        66 ba 02 04     ; mov dx, 0x402
        8b 73 10        ; mov esi, [ebx + 16] (cmdline)
        e8 1a 00 00 00  ; call show
        8b 43 18        ; mov eax, [ebx + 24] (mods_addr)
        8b 38           ; mov edi, [eax] (mod_start)
        8b 70 08        ; mov esi, [eax + 8] (string)
        e8 0d 00 00 00  ; call show
        89 fe           ; mov esi, edi
        e8 06 00 00 00  ; call show
        b0 05           ; mov al, 5
        e6 f4           ; out 0xf4, al
        eb fe           ; jmp $
        ac              ; show: lodsb
        84 c0           ; test al, al
        74 03           ; jz done
        ee              ; out dx, al
        eb f8           ; jmp show
        c3              ; done: ret
    """)
    module = files.write("a module", b"its data\0")
    done = iobus(
        "run", files.write("image", protected(code)), "--append", "one two", "--module", f"{module},three, four",
        "--timeout", 30,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (11, b"image one twoa module three, fourits data")


def test_a_reset_loads_the_image_anew(files: Files) -> None:
    """The guest counts its boots in RAM, which keeps what it held, and resets until it has counted two."""
    count = struct.pack("<I", 2 * MIB)
    code = b"\xff\x05" + count + b"\x83\x3d" + count + b"\x02" + b"\x74\x09" + out(0xCF9, 6) + HANG + END
    image = files.write("image", protected(code))
    assert iobus("run", image, "--timeout", 30).returncode == 11
    assert iobus("run", image, "--timeout", 30, "--no-reboot").returncode == 0


def test_boot_has_none_of_the_emulators_devices(files: Files) -> None:
    """An honest PC: the debug exit port of `iobus boot` is nobody's."""
    kernel = files.write("image", bzimage(bytes(0x200) + END))
    done = iobus("boot", "--kernel", kernel, "--unclaimed", "stop", "--timeout", 30)
    assert done.returncode == 6 and b"1-byte write of 0x5 to port 0xf4" in done.stderr


BAD: dict[str, tuple[Callable[[Files], list[object]], str]] = {
    "no image": (lambda f: [], "needs an IMAGE"),
    "missing image": (lambda f: ["/nowhere/kernel"], "image /nowhere/kernel does not exist"),
    "no kind of image": (lambda f: [f.write("i", b"hello")], "begins with b'hell' and is no Linux bzImage"),
    "missing module": (lambda f: [f.write("i", protected(HANG)), "--module", "/nowhere,x"], "module /nowhere does not"),
    "an address that is none": (lambda f: [f.write("i", HANG), "--at", "here"], "--at: 'here' is no number"),
    "an address too high": (lambda f: [f.write("i", HANG), "--at", "4G"], "'4G' is no address below 4 GiB"),
    "an address that is not RAM": (lambda f: [f.write("i", HANG), "--at", "0xA0000"], "is not in RAM; usable are"),
    "an image beyond RAM": (
        lambda f: [f.write("i", elf([Load(MIB, multiboot(), 512 * MIB)], MIB))],
        "is not in RAM; usable are",
    ),
    "no CPU": (lambda f: [f.write("i", protected(HANG)), "--cpus", "0"], "--cpus: '0' is no number of CPUs; give 1 to"),
    "too many CPUs": (
        lambda f: [f.write("i", protected(HANG)), "--cpus", "256"],
        "'256' is no number of CPUs; give 1 to 2",
    ),
    "too little memory": (lambda f: [f.write("i", protected(HANG)), "--memory", "1M"], "is not in RAM"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_status_2(files: Files, capfd: pytest.CaptureFixture[str], case: str) -> None:
    """It names the value; there is no traceback and nothing on standard output."""
    arguments, words = BAD[case]
    assert main(["run", *map(str, arguments(files))]) == 2
    said = capfd.readouterr()
    assert words in said.err and said.err.startswith("iobus: ") and said.err.count("\n") == 1 and not said.out
