"""Firmware: ROM images, the reset vector, and shadow RAM under code that runs from it."""

from pathlib import Path

import pytest
from cli_rig import Files, iobus
from images import assembled

from iobus.cli import main
from iobus.machine import Machine
from iobus.pc.pc import Pc


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def rom(code: bytes, size: int = 0x10000) -> bytes:
    """`code` at F000:E000, and a far jump there at the reset vector."""
    image = bytearray(b"\xff" * size)
    image[size - 0x2000 : size - 0x2000 + len(code)] = code
    image[size - 16 : size - 11] = assembled("ea 00 e0 00 f0 ; jmp 0xf000:0xe000")
    return bytes(image)


def end(letters: str) -> str:
    """Write AL as the code of the debug exit."""
    return f"e6 f4 ; out 0xf4, al ({letters})\neb fe ; jmp $"


@pytest.mark.parametrize("size", [0x2000, 0x10000, 0x20000, 0x40000])
def test_the_cpu_starts_at_the_reset_vector(files: Files, size: int) -> None:
    """In real mode, with the ROM's end both below 4 GiB and below 1 MiB, whatever its size; DX has a signature."""
    code = assembled(f"""
        85 d2           ; test dx, dx
        b0 00           ; mov al, 0
        74 02           ; jz end
        b0 15           ; mov al, 0x15
        {end("end")}
    """)
    done = iobus("run", "--firmware", files.write("rom", rom(code, size)), "--timeout", 30)
    assert (done.returncode, done.stdout, done.stderr) == (0x2B, b"", b"")


def pam(value: int) -> str:
    """Set PAM0 to a value by configuration mechanism #1 (EAX, DX are changed)."""
    return f"""
        66 b8 58 00 00 80   ; mov eax, 0x80000058
        ba f8 0c            ; mov dx, 0xcf8
        66 ef               ; out dx, eax
        ba fd 0c            ; mov dx, 0xcfd
        b0 {value:02x}      ; mov al, {value}
        ee                  ; out dx, al
    """


def test_code_that_runs_in_the_segment_it_shadows(files: Files) -> None:
    """It copies itself to RAM with PAM0 "write only", turns on "read/write" and changes itself, protects itself again.

    Then writes do nothing, and the instructions that follow are those it has written.
    """
    code = assembled(f"""
        {pam(0x20)}
        8c c8               ; mov ax, cs
        8e d8               ; mov ds, ax
        8e c0               ; mov es, ax
        31 f6               ; xor si, si
        31 ff               ; xor di, di
        b9 00 80            ; mov cx, 0x8000
        fc                  ; cld
        f3 a5               ; rep movsw
        {pam(0x30)}
        2e c6 06 00 e1 05   ; mov byte ptr cs:[0xe100], 5
        {pam(0x10)}
        2e c6 06 00 e1 09   ; mov byte ptr cs:[0xe100], 9
        2e a0 00 e1         ; mov al, cs:[0xe100]
        e6 f4               ; out 0xf4, al
        eb fe               ; jmp $
    """)
    done = iobus("run", "--firmware", files.write("rom", rom(code)), "--timeout", 30)
    assert (done.returncode, done.stderr) == (11, b"")


def test_a_reset_brings_the_rom_back(files: Files) -> None:
    """RAM keeps a mark across a reset; the shadow is the ROM again, the CPU at the reset vector."""
    code = assembled(f"""
        31 c0               ; xor ax, ax
        8e d8               ; mov ds, ax
        2e a0 00 e1         ; mov al, cs:[0xe100]
        80 3e 00 06 01      ; cmp byte ptr [0x600], 1
        74 1e               ; je end
        c6 06 00 06 01      ; mov byte ptr [0x600], 1
        {pam(0x30)}
        ba f9 0c            ; mov dx, 0xcf9
        b0 06               ; mov al, 6
        ee                  ; out dx, al
        eb fe               ; jmp $
        {end("end")}
    """)
    image = bytearray(rom(code))
    image[-0x1F00] = 0x11
    done = iobus("run", "--firmware", files.write("rom", bytes(image)), "--timeout", 30)
    assert (done.returncode, done.stderr) == (0x23, b"")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--firmware", "/nowhere/rom"], "firmware /nowhere/rom does not exist"),
        (["--firmware", "EMPTY"], "has 0 bytes; a ROM image has 4 KiB to 8 MiB, in whole pages"),
        (["--firmware", "ODD"], "has 5000 bytes"),
        (["--firmware", "LARGE"], "has 16777216 bytes"),
        (["--firmware", "ZEROS"], "nothing but zeros in its last 16 bytes, where the CPU starts"),
        (["--firmware", "ROM", "ROM"], "boots by itself; leave IMAGE out"),
        (["--firmware", "ROM", "--append", "x"], "leave --append out"),
        (["--firmware", "ROM", "--module", "x"], "leave --module out"),
        (["--firmware", "ROM", "--at", "0"], "leave --at out"),
    ],
)
def test_bad_firmware_gets_one_line_and_status_2(
    files: Files, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """It names the file and what would be right."""
    contents = {
        "EMPTY": b"", "ODD": bytes(5000), "LARGE": b"\xff" * (16 << 20), "ZEROS": bytes(4096), "ROM": rom(b"\xf4"),
    }  # fmt: skip
    paths = {name: files.write(name, data) for name, data in contents.items()}
    assert main(["run", *(str(paths.get(argument, argument)) for argument in arguments)]) == 2
    said = capfd.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


def test_a_pc_with_firmware_is_left_as_hardware_leaves_it() -> None:
    """No tables, no vectors, no data area: that is the firmware's to write. The ROM is not RAM of the memory size."""
    pc = Pc(memory=4 << 20, firmware=rom(b"\xf4"))
    memory = pc.machine.memory
    assert memory.read(0, 0xA0000) == bytes(0xA0000)
    assert memory.read(0x100000, 3 << 20) == bytes(3 << 20)
    assert memory.read(0xFFFF0000, 0x10000) == memory.read(0xF0000, 0x10000) == rom(b"\xf4")
    assert memory.find(0xFFFFFFF0, write=True) is None
    with pytest.raises(ValueError, match="a ROM of 100 bytes: it must be 4 KiB to 8 MiB"):
        Pc(firmware=bytes(100))
    assert isinstance(pc.machine, Machine) and pc.board is not None and len(pc.board.pci.functions) == 1
