"""16-bit code on the whole PC: real mode and virtual-8086 mode (Intel SDM vol. 3A, chapter 21). See legacy.s."""

from __future__ import annotations

import pytest
from guest_rig import run16, run32

pytestmark = pytest.mark.usefixtures("way")


def test_software_interrupts_in_real_mode() -> None:
    """Section 21.1.4: the next IP, CS and FLAGS on the stack, IF off in the handler; a division error is a fault."""
    assert run16("legacy", "real_int") == [0, 0x1000, 0x200, 0, 8, 0x33, 3, 0x33, 4, 0, 0x77]


def test_the_timer_in_real_mode() -> None:
    """IRQ 0 is vector 8, as a BIOS has it, and wakes the CPU from HLT."""
    (ticks,) = run16("legacy", "real_timer")
    assert ticks >= 10


def test_the_slaves_interrupt_in_real_mode() -> None:
    """IRQ 11 through a vector table that LIDT has moved: in service at both 8259s."""
    assert run16("legacy", "real_slave") == [0x73, 8, 4, 2]


def test_interrupts_of_virtual_8086_mode() -> None:
    """Section 21.3: to level 0 with all segments saved and null; back, and again by INT n with IOPL 3."""
    segments = [0x7F0, 0x5000, 0x1111, 0x4444]
    assert run32("legacy", "v86_interrupts") == [
        0, 0, 0x1000, 0x20200, *segments, 7, 0x1000, 0x20000, *segments,
    ]  # fmt: skip


def test_virtual_8086_mode_with_a_low_iopl() -> None:
    """Section 21.2.8: CLI, STI, PUSHF, POPF, INT n and IRET are #GP(0); INT3 is not among them."""
    assert run32("legacy", "v86_iopl") == [0, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 6, 0x33]
