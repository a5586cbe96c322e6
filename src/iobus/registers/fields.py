"""`Field`: some bits of a register, declared in its class, read and assigned through a device.

Stands on `entries.py` and `bodies.py`; `language.py` has the registers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, overload

from iobus.registers.bodies import wrong_field
from iobus.registers.entries import FieldEntry, MapError, ValueEntry, bit_range, clean
from iobus.registers.kinds import Access

if TYPE_CHECKING:
    from iobus.registers.language import Register


class Bits(NamedTuple):
    """Adjacent bits. Made by `bits`."""

    msb: int
    lsb: int


def bits(msb: int, lsb: int) -> Bits:
    """Bits `msb` down to `lsb`, both included: what datasheets write as [7:4] is `bits(7, 4)`."""
    return Bits(msb, lsb)


class Values(IntEnum):
    """Named values of a field, with a sentence on each where wanted: `FAST = 1, "At the full clock"`."""

    doc: str

    def __new__(cls, value: int, doc: str = "") -> Self:
        if not isinstance(value, int) or not isinstance(doc, str):
            raise MapError(f"{cls.__name__}: a value is {value!r}; give a whole number, or one and a sentence on it")
        self = int.__new__(cls, value)
        self._value_ = value
        self.doc = doc
        return self


class Field(property):
    """Some bits of a register. Through a device's register it is their value, an int.

    `where` is the number of a bit, or `bits(msb, lsb)`; `access` is what a guest can do with it.
    `reset` is its value after reset and `values` names what its values mean. `name` is the
    datasheet's name where that is none that Python takes.
    """

    # A property, for nothing else that looks at Python code is as fast: one look-up and one call.

    _declared: ClassVar = True

    def __init__(
        self,
        where: int | Bits,
        access: Access,
        doc: str = "",
        *,
        reset: int = 0,
        values: type[IntEnum] | None = None,
        name: str = "",
    ) -> None:
        self.wrong = wrong_field(where, access, doc, reset, values, name)
        """What is wrong with it, or nothing: its register's class says so, for here it has no name yet."""
        msb, lsb = where if isinstance(where, Bits) else (where, where)
        if self.wrong:
            msb, lsb = 0, 0
        mask = (1 << max(msb - lsb + 1, 0)) - 1
        self.msb, self.lsb, self.mask = msb, lsb, mask
        self.access = access
        self.description = doc
        self.reset = reset
        self.values = values
        self.name = name
        self.attribute = ""

        def get(register: Register) -> Any:
            bank = register._bank
            if bank is None:  # in a class body, for a hook
                return FieldTarget(register, self.name)
            return bank.state.registers[register._index] >> lsb & mask

        super().__init__(get, self._assign, doc=doc)

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name
        self.name = self.name or name

    def __repr__(self) -> str:
        return f"the field at {bit_range(self.msb, self.lsb)}"

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __get__(self, register: None, owner: type) -> Field: ...
        @overload
        def __get__(self, register: Register, owner: type) -> int: ...
        def __get__(self, register: Register | None, owner: type) -> Field | int: ...
        def __set__(self, register: Register, value: int) -> None: ...

    def _assign(self, register: Register, value: int) -> None:
        bank = register._require_bank()
        if value & self.mask != value:
            raise ValueError(
                f"{register._name()}.{self.name} = {value}: a field of {plural(self.msb - self.lsb + 1, 'bit')} "
                f"takes 0 to {self.mask}"
            )
        if not self.access.keeps:
            raise ValueError(f"{register._name()}.{self.name} = {value}: it is {self.access} and keeps nothing")
        values, index = bank.state.registers, register._index
        values[index] = values[index] & ~(self.mask << self.lsb) | value << self.lsb

    def entry(self) -> FieldEntry:
        """Return the field as plain data."""
        named = tuple(ValueEntry(int(item), item.name, clean(getattr(item, "doc", ""))) for item in self.values or ())
        return FieldEntry(self.name, self.lsb, self.msb - self.lsb + 1, self.access, clean(self.description), named)


class FieldTarget:
    """What `CTRL.ENABLE` is in a class body: the field that a hook is for."""

    __slots__ = ("name", "register")

    def __init__(self, register: Register, name: str) -> None:
        self.register = register
        self.name = name


def plural(count: int, what: str) -> str:
    """`1 bit`, `2 bits`."""
    return f"{count} {what}{'' if count == 1 else 's'}"
