"""Each access kind, in a sentence: what a guest's read and write do, and what the device is left with."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from iobus.registers import (
    KINDS,
    RC,
    RCW,
    RES0,
    RES1,
    RME,
    RMEW,
    RS,
    RW,
    RW0C,
    RW0S,
    RW0T,
    RW1,
    RW1C,
    RW1S,
    RW1T,
    RWC,
    RWME,
    RWS,
    W1,
    W1C,
    W1S,
    W1T,
    WO,
    Access,
    Field,
    OnRead,
    OnWrite,
    R,
    Register,
    RegisterBank,
    W,
    bits,
    kind,
)

DOCS = Path(__file__).parents[2] / "docs" / "registers.md"


def device(access: Access, held: int) -> Any:
    """A device with a field of four bits of the kind, at bits 7 to 4 of a register, which hold `held`."""

    class Reg(Register):
        F = Field(bits(7, 4), access)

    class Bank(RegisterBank):
        REG = Reg(0)

    bank = Bank()
    if access.keeps:
        bank.REG.F = held
    return bank


# (kind, what is held, what is written, what is held then): bit by bit, all four cases of (old, written).
WRITES = [
    (R, 0b0011, 0b0101, 0b0011),
    (RW, 0b0011, 0b0101, 0b0101),
    (RW1, 0b0011, 0b0101, 0b0101),
    (RW1C, 0b0011, 0b0101, 0b0010),
    (RW1S, 0b0011, 0b0101, 0b0111),
    (RW1T, 0b0011, 0b0101, 0b0110),
    (RW0C, 0b0011, 0b0101, 0b0001),
    (RW0S, 0b0011, 0b0101, 0b1011),
    (RW0T, 0b0011, 0b0101, 0b1001),
    (RWC, 0b0011, 0b0101, 0b0000),
    (RWS, 0b0011, 0b0101, 0b1111),
    (RC, 0b0011, 0b0101, 0b0011),
    (RS, 0b0011, 0b0101, 0b0011),
    (RCW, 0b0011, 0b0101, 0b0101),
    (RME, 0b0011, 0b0101, 0b0011),
    (RMEW, 0b0011, 0b0101, 0b0101),
    (RWME, 0b0011, 0b0101, 0b0011),
    (W, 0b0000, 0b0101, 0b0000),
    (WO, 0b0011, 0b0101, 0b0101),
    (W1, 0b0011, 0b0101, 0b0101),
    (W1C, 0b0011, 0b0101, 0b0010),
    (W1S, 0b0011, 0b0101, 0b0111),
    (W1T, 0b0011, 0b0101, 0b0110),
    (RES0, 0b0000, 0b0101, 0b0000),
    (RES1, 0b1111, 0b0101, 0b1111),
]


@pytest.mark.parametrize(("access", "old", "written", "new"), WRITES, ids=lambda item: str(item))
def test_what_a_write_leaves(access: Access, old: int, written: int, new: int) -> None:
    """A write of 1s and 0s on bits that were 1 and 0 leaves what the kind's name says, and nothing elsewhere."""
    bank = device(access, old)
    bank.write(0, 4, 0xFFFFFF0F | written << 4)
    assert new == bank.REG.F
    assert bank.REG.value == new << 4


# (kind, what a read of 0b0110 gives, what is held then)
READS = [
    *((access, 0b0110, 0b0110) for access in (R, RW, RW1, RW1C, RW1S, RW1T, RW0C, RW0S, RW0T)),
    *((access, 0b0110, 0b0110) for access in (RWC, RWS, RME, RMEW, RWME)),
    (RC, 0b0110, 0b0000),
    (RCW, 0b0110, 0b0000),
    (RS, 0b0110, 0b1111),
    *((access, 0b0000, 0b0110) for access in (WO, W1, W1C, W1S, W1T)),
    (W, 0b0000, 0b0000),
    (RES0, 0b0000, 0b0000),
    (RES1, 0b1111, 0b1111),
]


@pytest.mark.parametrize(("access", "shown", "left"), READS, ids=lambda item: str(item))
def test_what_a_read_gives_and_leaves(access: Access, shown: int, left: int) -> None:
    """A read gives the value, zeros or ones; only kinds whose name says so change it by being read."""
    bank = device(access, 0b0110)
    assert bank.read(0, 4) == shown << 4
    assert left == bank.REG.F


def test_every_named_kind_is_here() -> None:
    """No kind is without a sentence above."""
    assert {access for access, *_ in WRITES} == {access for access, *_ in READS} == set(KINDS)


@pytest.mark.parametrize("access", [RW1, W1])
def test_write_once_is_once_a_bit_until_reset(access: Access) -> None:
    """Bits that a byte write covered are closed, the others still open; a reset opens all again."""

    class Reg(Register):
        F = Field(bits(15, 0), access)

    class Bank(RegisterBank):
        REG = Reg(0)

    bank = Bank()
    bank.write(0, 1, 0x34)
    bank.write(0, 4, 0xABCD)
    assert bank.REG.F == 0xAB34
    bank.write(0, 4, 0xFFFF)
    assert bank.REG.F == 0xAB34
    bank.reset()
    bank.write(0, 4, 0x1111)
    assert bank.REG.F == 0x1111


def test_a_byte_write_leaves_the_other_bytes_of_write_1_to_clear() -> None:
    """Clearing an event by a byte write loses no event in another byte: the access covers only its own bits."""

    class Reg(Register):
        LOW = Field(0, RW1C)
        HIGH = Field(8, RW1C)

    class Bank(RegisterBank):
        REG = Reg(0)

    bank = Bank()
    bank.REG.value = 0x101
    bank.write(1, 1, 0xFF)
    assert (bank.REG.LOW, bank.REG.HIGH) == (1, 0)


def test_a_byte_read_leaves_the_other_bytes_of_read_to_clear() -> None:
    """A read clears what it shows, and nothing that it does not show."""

    class Reg(Register, rest=RC):
        pass

    class Bank(RegisterBank):
        REG = Reg(0, reset=0x12345678)

    bank = Bank()
    assert bank.read(1, 1) == 0x56
    assert bank.REG.value == 0x12340078


def test_kinds_are_the_same_when_they_do_the_same() -> None:
    """A kind is found by its effect, and has a name of its own only where datasheets have one."""
    assert kind(OnRead.VALUE, OnWrite.ONE_CLEARS) is RW1C
    assert kind(OnRead.CLEARS, OnWrite.ONE_SETS) == Access("W1SRC", OnRead.CLEARS, OnWrite.ONE_SETS)
    assert repr(kind(OnRead.CLEARS, OnWrite.ONE_SETS)) == "CLEARS_ONE_SETS"


def test_reserved_ones_take_no_writes() -> None:
    """Bits that always read as 1 with a write that does something is no kind."""
    for on_write in OnWrite:
        if on_write is not OnWrite.IGNORED:
            with pytest.raises(
                ValueError, match="access kind X: bits that read as 1 whatever they hold take no writes"
            ):
                Access("X", OnRead.ONE, on_write)


def test_two_kinds_of_one_name_are_one() -> None:
    """No two named kinds do the same: each row of the table is needed."""
    assert len({(access.on_read, access.on_write) for access in KINDS}) == len(KINDS)
    for one, other in itertools.combinations(KINDS, 2):
        assert one != other


def test_the_docs_have_each_kind() -> None:
    """The table of docs/registers.md has a row for each kind, and no other."""
    section = DOCS.read_text().split("## The access kinds")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [access.name for access in KINDS]
