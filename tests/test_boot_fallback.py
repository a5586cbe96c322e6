"""Guests of a PC on the Unicorn engine's fallback: a few instructions, and Debian's whole kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import ECHO, POWER_OFF, say
from test_boot_linux import bzimage

from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd
from iobus.boot.linux import LinuxKernel
from iobus.cli.boot import COMMAND_LINE, LinuxGuest, run
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import PowerOffExit
from iobus.pc.pc import Pc


class FallbackPc(Pc):
    """A PC that cannot use guest-mode intercepts, and what its guest has written to the console."""

    def __init__(self, memory: int) -> None:
        self.shown = bytearray()
        super().__init__(UnicornEngine("fallback"), memory=memory, console=self.shown.extend)


@pytest.fixture
def pc() -> Iterator[FallbackPc]:
    pc = FallbackPc(128 << 20)
    yield pc
    pc.machine.close()


def load(pc: Pc, path: Path, code: bytes) -> None:
    """Put a kernel of a few instructions into the PC's RAM."""
    path.write_bytes(bzimage(bytes(0x200) + code))
    LinuxGuest(LinuxKernel.read(path), b"", "").load(pc)


def test_a_small_kernel_says_hello_and_powers_off(pc: FallbackPc, tmp_path: Path) -> None:
    """By the 64-bit boot protocol, the UART's ports and the ACPI power-off."""
    load(pc, tmp_path / "vmlinuz", say("hello\n") + POWER_OFF)
    assert pc.machine.run(timeout=30) == PowerOffExit()
    assert pc.shown == b"hello\n"


def test_typed_keys_reach_a_small_kernel(pc: FallbackPc, tmp_path: Path) -> None:
    """It polls the UART, echoes, and powers off at a 'q'."""
    load(pc, tmp_path / "vmlinuz", ECHO)
    pc.type(b"keys q")
    assert pc.machine.run(timeout=30) == PowerOffExit()
    assert pc.shown == b"keys q"


@pytest.mark.slow
def test_debian_boots_to_user_space() -> None:
    """The unmodified kernel with LAPIC, IO-APIC and ACPI: interrupts count in /proc/interrupts, it powers off.

    Some 20 s of CPU; the kernel's tests of its own ciphers are left out, another 15 s.
    """
    try:
        kernel, busybox = LinuxKernel.read(debian.cloud_kernel()), debian.busybox().read_bytes()
    except debian.GuestUnavailableError as exc:
        pytest.skip(f"no guest: {exc}")
    script = "mount -t proc proc /proc\ncat /proc/interrupts\necho user space\npoweroff -f\n"
    pc = FallbackPc(256 << 20)
    try:
        guest = LinuxGuest(kernel, busybox_initrd(busybox, script), f"{COMMAND_LINE} quiet cryptomgr.notests")
        guest.load(pc)
        exit = run(pc, guest, timeout=280, reboot=False)
        shown = pc.shown.decode(errors="replace")
        assert exit == PowerOffExit(), shown[-2000:]
    finally:
        pc.machine.close()
    counts = {line.split(":")[0].strip(): line.split()[1:] for line in shown.splitlines() if ":" in line}
    assert int(counts["LOC"][0]) > 10
    assert counts["4"][1:] == ["IO-APIC", "4-edge", "ttyS0"]
    assert "user space" in shown.splitlines()
