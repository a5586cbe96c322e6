"""`iobus run` as the host of KVM's unit-test guests, and of suites like them: each thing that they ask of it.

The guest is host.s: an image as they are, that does by the same means what their start-up code does.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from cli_rig import HANG, Files, iobus
from guest_rig import image
from images import MIB, Load, elf, multiboot

LOADED_AT, BSS = 0x400000, 0xD00000
MEMORY = 64


def unit_test() -> bytes:
    """The image: its code, and 13 MiB of bss behind it."""
    code = image("host").code
    assert len(code) <= 0x1000
    return elf([Load(LOADED_AT, code, 0x1000 + BSS)], image("host").symbols["start"])


@pytest.mark.parametrize("cpus", [1, 2, 4, 16])
def test_a_unit_test_finds_what_it_needs(tmp_path: Path, cpus: int) -> None:
    """Sizes, strings and module by Multiboot; fw_cfg; the test device; all CPUs by INIT and one start-up message."""
    files = Files(tmp_path)
    environment = b"NR_CPUS=2\nFEATURE=1\n"
    done = iobus(
        "run", files.write("apic.flat", unit_test()), "--append", "one two", "--memory", f"{MEMORY}M",
        "--module", files.write("env", environment), "--cpus", cpus, "--timeout", 60,
    )  # fmt: skip
    assert done.stdout.decode().splitlines() == [
        "2badb002",
        f"{(MEMORY - 1) << 10:08x}",  # mem_upper, in KiB from 1 MiB on
        "00000000",  # bss is zero
        "apic.flat one two",
        "NR_CPUS=2",
        "FEATURE=1",
        f"{cpus:08x}",  # fw_cfg: the CPUs, the RAM, no kernel
        f"{MEMORY << 20:08x}",
        "00000000",
        "bcde9a78",  # 0xe0-0xe3 after writes of 4, 1 and 2 bytes, and the first byte at 0xe8
        "00000078",
        "11225544",  # memory at 0xff000000, unaligned, after a write of 4 bytes and one of 1
    ]
    assert (done.returncode, done.stderr) == (cpus << 1 | 1, b"")


@pytest.mark.parametrize("code", [0, 1, 0x2A, 0x7F])
def test_the_status_is_the_code_and_a_one(tmp_path: Path, code: int) -> None:
    """`outl(code, 0xF4)` ends the host with (code << 1) | 1, so that a guest which passed, 0, ends it with 1."""
    exit = b"\xb8" + struct.pack("<I", code) + b"\xe7\xf4" + HANG  # mov eax, code; out 0xf4, eax
    program = elf([Load(MIB, multiboot() + exit)], MIB + 12)
    done = iobus("run", Files(tmp_path).write("test.flat", program), "--timeout", 30)
    assert (done.returncode, done.stdout, done.stderr) == (code << 1 | 1, b"", b"")
