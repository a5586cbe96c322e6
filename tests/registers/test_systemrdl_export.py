"""`to_systemrdl`: a written device's map, exported and read again, is an equal map."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from random_maps import maps

from iobus.registers import (
    RES1,
    RW,
    Dimension,
    Field,
    FieldEntry,
    MapError,
    Register,
    RegisterBank,
    RegisterEntry,
    RegisterMap,
    bits,
    to_systemrdl,
)
from iobus.registers.systemrdl import read_systemrdl

pytest.importorskip("systemrdl", reason="systemrdl-compiler is not installed")


@settings(max_examples=60)
@given(maps())
def test_a_map_survives_the_round_trip(bank: RegisterMap) -> None:
    """Export and import give an equal map, and nothing to remark: kinds, resets, docs, values, arrays, options."""
    read = read_systemrdl(to_systemrdl(bank))
    assert read.map == bank
    assert read.notes == ()


def one(name: str = "CTRL", doc: str = "") -> RegisterMap:
    return RegisterMap("Bank", (RegisterEntry(name, 0, fields=(FieldEntry("GO", 0, 1, RW),), doc=doc),), 4)


def test_what_it_exports_reads_as_systemrdl() -> None:
    """A device class is exported in the words of the standard, without properties of our own where it has none."""

    class Control(Register):
        """What it does."""

        GO = Field(3, RW, "Starts", reset=1)

    class Timer(RegisterBank):
        CTRL = Control.array(0x8, 2, stride=0x10)

    text = to_systemrdl(Timer)
    assert to_systemrdl(Timer()) == text
    assert text == (
        "addrmap Timer {\n"
        "    reg {\n"
        '        desc = "What it does.";\n'
        "        field {\n"
        '            desc = "Starts";\n'
        "            sw = rw; hw = rw;\n"
        "        } GO[3:3] = 1'h1;\n"
        "    } CTRL[2] @ 0x8 += 0x10;\n"
        "};\n"
    )


def test_the_kind_of_no_bits_makes_no_difference() -> None:
    """Where fields cover the register, what its class says of the rest is not in the map, nor lost on the way."""

    class Full(Register, width=8, rest=RES1):
        DATA = Field(bits(7, 0), RW)

    class Bank(RegisterBank):
        FULL = Full(0x0)

    assert read_systemrdl(to_systemrdl(Bank)).map == Bank.map


@pytest.mark.parametrize("name", ["reg", "rw", "default", "within", "wzt"])
def test_a_name_that_is_a_keyword_is_escaped(name: str) -> None:
    """A register called `reg` is `\\reg` in the text and `reg` again when it is read."""
    assert f"\\{name} @" in to_systemrdl(one(name))
    assert read_systemrdl(to_systemrdl(one(name))).map == one(name)


def test_members_come_back_in_the_order_of_their_offsets() -> None:
    """SystemRDL has registers in the order of their addresses, whatever the class body's."""
    a, b = RegisterEntry("A", 8, fields=one().members[0].fields), RegisterEntry("B", 0, fields=one().members[0].fields)  # type: ignore[union-attr]
    assert read_systemrdl(to_systemrdl(RegisterMap("Bank", (a, b), 12))).map.members == (b, a)


def test_what_would_be_a_program_in_the_text_is_taken_apart() -> None:
    """A description's `<%` begins a piece of Perl in SystemRDL; it is exported as two characters apart."""
    assert read_systemrdl(to_systemrdl(one(doc="50 <% 60"))).map == one(doc="50 < % 60")


def test_what_it_cannot_say_is_an_error_that_names_it() -> None:
    """Interleaved arrays, a name with a letter of another alphabet, and no registers at all."""
    interleaved = tuple(
        replace(one().members[0], name=name, offset=offset, array=Dimension(2, 8))
        for name, offset in (("A", 0), ("B", 4))
    )
    with pytest.raises(MapError, match=r"^Bank: A and B lie between each other, which SystemRDL cannot say$"):
        to_systemrdl(RegisterMap("Bank", interleaved, 16))
    with pytest.raises(MapError, match=r"^Bank\.ÄNDERN: 'ÄNDERN' is no name in SystemRDL"):
        to_systemrdl(one("ÄNDERN"))
    with pytest.raises(MapError, match=r"^Bank: it has no registers"):
        to_systemrdl(RegisterMap("Bank", (), 4))
