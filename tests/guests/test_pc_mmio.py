"""Instructions of all kinds on memory-mapped I/O, here the test device's memory. The guests are mmio.s."""

from __future__ import annotations

import pytest
from guest_rig import run

pytestmark = pytest.mark.usefixtures("way")


def test_read_modify_write() -> None:
    """INC, ADD, XCHG, XADD, CMPXCHG, BTS, BTR, NEG, SHL: once each, locked or not."""
    assert run("mmio", "modify") == [
        0x55442212, 0x88776656,
        0x44332211, 0x88776655, 0x5A5A5A5A, 0x88776658,
        1, 0x88776655, 0x99, 0x88776655,
        0, 0x43302210, 0x7877665D,
    ]  # fmt: skip


def test_pointers_that_lie_there() -> None:
    """PUSH, POP, CALL, far JMP and CALL, LIDT and SIDT, segment registers."""
    assert run("mmio", "pointers") == [
        0x44332211, 0x88776655, 0x1234, 0, 1, 2, 3, 4, 0x700001FF, 0, 0x100010,
    ]  # fmt: skip


def test_strings() -> None:
    """STOS, MOVS both ways, CMPS, SCAS, LODS backwards; an access across two pages."""
    assert run("mmio", "strings") == [0x04030201, 0x04030201, 1, 0, 13, 3, 0x55667788, 0x11223344]


def test_wide_registers() -> None:
    """MMX, SSE aligned and not, CMPXCHG16B."""
    assert run("mmio", "wide") == [
        0x88664422, 0x10EECCAA, 0x44332211, 0x88776655, 0xFF000000, 0, 0x33221100, 1, 5, 0, 6, 0,
    ]  # fmt: skip


def test_arithmetic() -> None:
    """MUL, DIV, IMUL, MOVSX, MOVBE, CMOV; a divisor of 0 is a division error."""
    assert run("mmio", "arithmetic") == [42, 14, 2, 0xFFFFFFEB, 0xDE, 1, 0xFFFFFF80, 0x80000000, 0x80000000]
