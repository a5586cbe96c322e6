"""What Python itself lets pass in a class body is an error of the definition too, and names where it is."""

from __future__ import annotations

import textwrap

import pytest

from iobus.registers import MapError

HEAD = """
from iobus.registers import *
class Plain(Register, rest=RW):
    pass
class Control(Register):
    ENABLE = Field(0, RW)
"""

# (what a class body says, what the error says)
NOT_DECLARED = [
    ("class Bank(RegisterBank):\n A = Plain", "Bank.A is the class Plain itself; write A = Plain(0x0)"),
    ("class Group(RegisterGroup):\n A = Plain", "Group.A is the class Plain itself; write A = Plain(0x0)"),
    ("class Status(Register):\n A = Field", "Status.A is the class Field itself; write A = Field(...)"),
    (
        "class Bank(RegisterBank):\n G = Field(1, RW)",
        "Bank.G is a field, and registers are what is here; a field goes into a Register",
    ),
    (
        "class Status(Register):\n A = Plain(0)",
        "Status.A is no field, which a Register has; registers go into a RegisterBank",
    ),
    (
        "class Status(Register):\n A = Plain.array(0, 2)",
        "Status.A is no field, which a Register has; registers go into a RegisterBank",
    ),
    ("class Bank(RegisterBank):\n A = Plain(0),", "Bank.A is a tuple; declare one thing, or several by its array()"),
    (
        "class Bank(RegisterBank):\n A = [Plain(0), Plain(4)]",
        "Bank.A is a list; declare one thing, or several by its array()",
    ),
    (
        "class Mixin:\n A = Plain\nclass Bank(Mixin, RegisterBank):\n pass",
        "Bank.A is the class Plain itself; write A = Plain(0x0)",
    ),
]

WRONG_TYPES = [
    ("class C(Register):\n A = Field('3', RW)", "C.A: its place is '3'; give the number of a bit, or bits(msb, lsb)"),
    (
        "class C(Register):\n A = Field((3, 2), RW)",
        "C.A: its place is (3, 2); give the number of a bit, or bits(msb, lsb)",
    ),
    ("class C(Register):\n A = Field(RW, 3)", "C.A: its place is RW; give the number of a bit, or bits(msb, lsb)"),
    ("class C(Register):\n A = Field(3, 'RW')", "C.A: its kind is 'RW'; give an access kind such as RW"),
    ("class C(Register):\n A = Field(3, RW, reset='1')", "C.A: reset='1'; give a whole number"),
    (
        "class C(Register):\n A = Field(3, RW, 1)",
        "C.A: its description is 1; give a text, and a reset value as reset=1",
    ),
    (
        "class C(Register):\n A = Field(3, RW, values={'UP': 1})",
        "C.A: values={'UP': 1}; give a class derived from Values or IntEnum",
    ),
    (
        "class Mode(Values):\n UP = 'x'",
        "Mode: a value is 'x'; give a whole number, or one and a sentence on it",
    ),
    ("class C(Register):\n A = Field(3, RW, name=3)", "C.A: name=3; give a text"),
    ("class C(Register, rest='RW'):\n pass", "C: rest='RW'; give an access kind such as RW, or None"),
    ("class C(Register, width='32'):\n pass", "C: a register is 8, 16, 32 or 64 bits wide, not '32'"),
    ("class B(RegisterBank):\n A = Plain(4.0)", "B.A: its offset is 4.0; give a whole number of bytes"),
    ("class B(RegisterBank):\n A = Plain('0')", "B.A: its offset is '0'; give a whole number of bytes"),
    ("class B(RegisterBank):\n A = Plain(0, reset='1')", "B.A: reset='1'; give a whole number"),
    ("class B(RegisterBank):\n A = Plain.array(0, '4')", "B.A: an array of '4', 4 bytes apart; give whole numbers"),
    ("class B(RegisterBank):\n A = Plain.array(0, -2)", "B.A: an array of -2 elements; it has at least 1"),
    ("class B(RegisterBank, length='4'):\n A = Plain(0)", "B: length='4'; give a whole number of bytes"),
    ("class B(RegisterBank, length=-1):\n A = Plain(0)", "B: length=-1; give a whole number of bytes"),
    (
        "class B(RegisterBank, lenght=4):\n A = Plain(0)",
        "B: there is no class option 'lenght'; a RegisterBank takes length and unmapped",
    ),
    (
        "class C(Register, widht=8):\n pass",
        "C: there is no class option 'widht'; a Register takes width and rest",
    ),
    ("class G(RegisterGroup, length=8):\n pass", "G: there is no class option 'length'; a RegisterGroup takes none"),
]

BANK = "class Bank(RegisterBank):\n A = Control(0x0)\n"

METHODS = [
    (
        " @on_write\n def wrote(self): pass",
        "Bank.wrote: @on_write without a target; say what it is for, as in @on_write(CTRL)",
    ),
    (
        " @on_read\n @staticmethod\n def reads(): pass",
        "Bank.reads: @on_read without a target; say what it is for, as in @on_read(CTRL)",
    ),
    (
        " @on_write(A)\n @staticmethod\n def wrote(value): pass",
        "Bank.wrote: on_write: its method is a staticmethod; make it a plain one, which takes self",
    ),
    (
        " @staticmethod\n @on_write(A)\n def wrote(value): pass",
        "Bank.wrote: on_write: its method is a staticmethod; make it a plain one, which takes self",
    ),
    (
        " @property\n @on_read(A)\n def reads(self): pass",
        "Bank.reads: on_read: its method is a property; make it a plain one, which takes self",
    ),
    (
        " @on_write(A)\n async def wrote(self, value): pass",
        "Bank.wrote is async, and nothing would await it; write it with def",
    ),
    (
        " @on_write(A.ENABLE)\n def wrote(self, value): yield",
        "Bank.wrote is a generator, and a call would not run it; write it without yield",
    ),
    (
        " async def write(self, offset, size, value): pass",
        "Bank.write is async, and nothing would await it; write it with def",
    ),
    (
        " def write(self, offset, size, value): yield",
        "Bank.write is a generator, and a call would not run it; write it without yield",
    ),
    (
        " async def update(self): yield",
        "Bank.update is async, and nothing would await it; write it with def",
    ),
    (" def update(self, x): pass", "Bank.update takes (self, x); give it (self)"),
    (" def update(): pass", "Bank.update takes (); give it (self)"),
    (" def read(self, offset): return 0", "Bank.read takes (self, offset); give it (self, offset, size)"),
    (" def connect(self): pass", "Bank.connect takes (self); give it (self, pc)"),
]


def define(source: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "bad"}
    exec(HEAD + textwrap.dedent(source), names)
    return names


@pytest.mark.parametrize(
    ("source", "message"), [*NOT_DECLARED, *WRONG_TYPES, *((BANK + source, message) for source, message in METHODS)]
)
def test_a_mistake_is_an_error_of_its_definition(source: str, message: str) -> None:
    """One sentence with the class, the attribute, and what would be right; no guest has to find it."""
    with pytest.raises(MapError) as error:
        define(source)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "source",
    [
        "class Bank(RegisterBank):\n class Status(Register):\n  A = Field(0, RW)\n S = Status(0)",
        "class Bank(RegisterBank):\n _kind = Plain\n A = Plain(0)",
        "class Bank(RegisterBank):\n sizes = (4, 8)\n words = dict\n A = Plain(0)",
        BANK + " def update(self, *more, now=False): pass",
        BANK + " @staticmethod\n def helper(value): yield value",
        BANK + " async def later(self): pass",
        "class Fast:\n def __init_subclass__(cls, *, speed, **options): super().__init_subclass__(**options)\n"
        "class Bank(Fast, RegisterBank, speed=3, length=8):\n A = Plain(0)",
    ],
)
def test_what_is_meant_is_no_mistake(source: str) -> None:
    """Classes defined where they are used, attributes of one's own, helpers and optional parameters stay possible."""
    define(source)
