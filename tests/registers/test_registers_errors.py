"""A bad declaration is an error where the class is defined, and the error names both sides."""

from __future__ import annotations

import textwrap

import pytest

from iobus.bus import IobusError
from iobus.registers import MapError, RegisterBank

# (what the class body says, what the error says). `Plain` is a 32-bit register that is all RW.
BAD: list[tuple[str, str]] = [
    # A register's fields.
    (
        """
        class Control(Register):
            A = Field(bits(3, 0), RW)
            B = Field(bits(5, 3), RW)
        """,
        "Control: fields A [3:0] and B [5:3] overlap at bit 3",
    ),
    (
        """
        class Control(Register):
            MODE = Field(bits(32, 30), RW)
        """,
        "Control: field MODE [32:30] is outside of the register, which is 32 bits wide: [31:0]",
    ),
    (
        """
        class Control(Register, width=8):
            MODE = Field(8, RW)
        """,
        "Control: field MODE [8] is outside of the register, which is 8 bits wide: [7:0]",
    ),
    (
        """
        class Control(Register):
            MODE = Field(bits(0, 3), RW)
        """,
        "Control.MODE: -2 bits at bit 3; it has at least 1, from bit 0 on",
    ),
    (
        """
        class Control(Register, width=24):
            MODE = Field(0, RW)
        """,
        "Control: a register is 8, 16, 32 or 64 bits wide, not 24",
    ),
    (
        """
        class Control(Register):
            ENABLE = Field(0, RW)
            ENABLE = Field(1, RW)
        """,
        "Control: two things are called ENABLE: the field at [0] and the field at [1]",
    ),
    (
        """
        class Control(Register):
            ENABLE = Field(0, RW, name="EN")
            EN = Field(1, RW)
        """,
        "Control: two fields are called EN: EN [0] and EN [1]",
    ),
    (
        """
        class Control(Register):
            MODE = Field(bits(2, 1), RW, reset=4)
        """,
        "Control: reset value 0x4 of MODE [2:1] does not fit in its 2 bits",
    ),
    (
        """
        class Control(Register):
            GO = Field(3, W, reset=1)
        """,
        "Control: reset value 0x8 is impossible at bit 3: it is W, which is always 0",
    ),
    (
        """
        class Control(Register, rest=None):
            A = Field(bits(3, 0), RW)
            B = Field(bits(30, 8), RW)
        """,
        "Control: no field has [31], [7:4]; with rest=None each bit has one",
    ),
    (
        """
        class Mode(Values):
            FAST = 4
        class Control(Register):
            MODE = Field(bits(2, 1), RW, values=Mode)
        """,
        "Control: value FAST=0x4 does not fit in the 2 bits of MODE [2:1]",
    ),
    (
        """
        class Control(Register):
            value = Field(0, RW)
        """,
        "Control: nothing declared in it can be called 'value', which has a meaning for every Register; "
        "call it value_ and give name='value'",
    ),
    # A bank's registers.
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x0)
            B = Plain(0x0)
        """,
        "Bank: A [0x0, 0x4) and B [0x0, 0x4) overlap; "
        "registers share an address only where one is read only and the other write only",
    ),
    (
        """
        class Wide(Register, width=64, rest=RW):
            pass
        class Bank(RegisterBank):
            B = Plain(0x4)
            A = Wide(0x0)
        """,
        "Bank: A [0x0, 0x8) and B [0x4, 0x8) overlap; "
        "registers share an address only where one is read only and the other write only",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain.array(0x0, 4)
            B = Plain(0x8)
        """,
        "Bank: A[2] [0x8, 0xc) and B [0x8, 0xc) overlap; "
        "registers share an address only where one is read only and the other write only",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x6)
        """,
        "Bank: A is at offset 0x6, which is no multiple of its 4 bytes",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain.array(0x0, 3, stride=6)
        """,
        "Bank: A[1] is at offset 0x6, which is no multiple of its 4 bytes",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain.array(0x0, 3, stride=2)
        """,
        "Bank.A: elements 0x2 bytes apart overlap, for each has 0x4 bytes",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain.array(0x0, 0)
        """,
        "Bank.A: an array of 0 elements; it has at least 1",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain.array(0x0, 1 << 17)
        """,
        "Bank: 131072 registers are more than 65536; so many are memory, which is no bank of registers",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain(-4)
        """,
        "Bank.A: offset -4 is negative",
    ),
    (
        """
        class Bank(RegisterBank, length=0x10):
            A = Plain(0x10)
        """,
        "Bank: A ends at 0x14, outside of the length 0x10 of the bank",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x0, reset=1 << 32)
        """,
        "Bank.A: reset value 0x100000000 does not fit in 32 bits",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x0)
            A = Plain(0x4)
        """,
        "Bank: two things are called A: the register at 0x0 and the register at 0x4",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x0)
            def A(self): pass
        """,
        "Bank: two things are called A: the register at 0x0 and the method A()",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x0, name="X")
            B = Plain(0x4, name="X")
        """,
        "Bank: two members are called X, at offset 0x0 and at 0x4",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x0, name="A B")
        """,
        "Bank: 'A B' is no name; use letters, digits and underscores",
    ),
    (
        """
        class Bank(RegisterBank):
            read = Plain(0x0)
        """,
        "Bank: nothing declared in it can be called 'read', which has a meaning for every RegisterBank; "
        "call it read_ and give name='read'",
    ),
    (
        """
        class Bank(RegisterBank):
            state = Plain(0x0)
        """,
        "Bank: nothing declared in it can be called 'state', which has a meaning for every RegisterBank; "
        "call it state_ and give name='state'",
    ),
    (
        """
        class Bank(RegisterBank, unmapped="one"):
            A = Plain(0x0)
        """,
        "Bank: unmapped='one'; use 'zero', 'ones' or 'decline'",
    ),
    (
        """
        class Group(RegisterGroup):
            A = Plain(0x0)
            B = Plain(0x2)
        """,
        "Group: B is at offset 0x2, which is no multiple of its 4 bytes",
    ),
    (
        """
        class Group(RegisterGroup):
            pass
        class Bank(RegisterBank):
            G = Group(0x0)
        """,
        "Bank.G: the group has no registers",
    ),
    # Hooks.
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x0)
            @on_write("B")
            def wrote(self): pass
        """,
        "Bank.wrote: on_write of B, but Bank has no such register; it has A",
    ),
    (
        """
        class Control(Register):
            ENABLE = Field(0, RW)
        class Bank(RegisterBank):
            A = Control(0x0)
            @on_write("A.ENABEL")
            def wrote(self): pass
        """,
        "Bank.wrote: on_write of A.ENABEL, but there is no such field; there are ENABLE",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain.array(0x0, 2)
            @on_write(A)
            def wrote(self): pass
        """,
        "Bank.wrote: on_write of the array at 0x0, which is neither a register nor a field; "
        "for a hook of each of its elements use .each",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x0)
            @on_write(A)
            def wrote(self, value, old, more): pass
        """,
        "Bank.wrote: on_write: its method takes (self, value, old, more); give it (self, value, old)",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain.array(0x0, 2)
            @on_read(A.each)
            def reads(self): pass
        """,
        "Bank.reads: on_read: its method takes (self); give it (self, index)",
    ),
    (
        """
        class Bank(RegisterBank):
            A = Plain(0x0)
            @on_write(A)
            def one(self): pass
            @on_write(A)
            def other(self): pass
        """,
        "Bank.other: on_write of A, which has one: one",
    ),
    (
        """
        class Control(Register):
            ID = Field(bits(7, 0), R)
        class Bank(RegisterBank):
            A = Control(0x0)
            @on_write(A.ID)
            def wrote(self): pass
        """,
        "Bank.wrote: on_write of A.ID, which is R: a write of it is ignored; make it RWME or W",
    ),
    (
        """
        class Control(Register):
            GO = Field(0, W)
        class Bank(RegisterBank):
            A = Control(0x0)
            @on_read(A.GO)
            def reads(self): pass
        """,
        "Bank.reads: on_read of A.GO, which is W: no read shows it; make it RME",
    ),
]


@pytest.mark.parametrize(("source", "message"), BAD, ids=lambda item: item[:40] if item[0] != "\n" else "")
def test_a_bad_declaration_is_an_error_of_its_definition(source: str, message: str) -> None:
    """One sentence that names what is at odds, with the values; nothing waits for a guest to find it."""
    head = "from iobus.registers import *\nclass Plain(Register, rest=RW): pass\n"
    with pytest.raises(MapError) as error:
        exec(head + textwrap.dedent(source), {"__name__": "bad"})
    assert str(error.value) == message
    assert isinstance(error.value, (IobusError, ValueError))


def test_a_typo_in_a_hooks_target_is_an_error_of_its_definition() -> None:
    """The class body itself fails, and Python's message names the kind of register and the name."""
    source = """
        class Control(Register):
            ENABLE = Field(0, RW)
        class Bank(RegisterBank):
            CTRL = Control(0x0)
            @on_write(CTRL.ENABEL)
            def wrote(self): pass
        """
    with pytest.raises(AttributeError, match="'Control' object has no attribute 'ENABEL'"):
        exec("from iobus.registers import *\n" + textwrap.dedent(source), {"__name__": "bad"})


def test_a_register_has_a_value_in_a_device_only() -> None:
    """In a class body and on the class it is a declaration: reading or assigning it says so."""
    source = """
        class Control(Register):
            ENABLE = Field(0, RW)
        class Bank(RegisterBank):
            CTRL = Control(0x10)
        """
    names: dict[str, type[RegisterBank]] = {}
    exec("from iobus.registers import *\n" + textwrap.dedent(source), names)
    bank = names["Bank"]
    for access in (lambda: bank.CTRL.value, lambda: setattr(bank.CTRL, "ENABLE", 1)):  # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match="the register at 0x10 of kind Control has a value in a device only"):
            access()
