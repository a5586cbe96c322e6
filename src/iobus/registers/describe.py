"""What an access is called: the protocol by which traces, replays and assertions name registers and fields.

Stands on `layout.py`. A device that has a method

    describe(offset: int, size: int, value: int, is_write: bool) -> list[RegisterAccess]

can be asked, at any time and without side effects, what an access of `size` bytes at `offset` with `value`
(the value that was read, or is written) means. The answer depends on the arguments alone, not on the
device's state: a recorded access can be described later, and `describe` may be called on the class. It has
an item for each register that the access touches, the lowest address first. Every `RegisterBank` has this
method; a device without it is simply unnamed. `str(item)` is one line of text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from iobus.registers.entries import FieldEntry, bit_range
from iobus.registers.kinds import RES1
from iobus.registers.layout import Layout, Part

UNMAPPED = ""
"""The name of bytes that no register has."""


class FieldValue(NamedTuple):
    """A field's part in an access."""

    name: str
    """With the bits, as in `DIVISOR[7:0]`, where the access covers not all of it; `[31:8]` for bits of no field."""
    value: int
    """The covered bits, the lowest of them at bit 0."""
    meaning: str = ""
    """The name of the value, where it has one and the access covers the whole field."""

    def __str__(self) -> str:
        return f"{self.name}={self.meaning or (self.value if self.value < 10 else f'{self.value:#x}')}"


class RegisterAccess(NamedTuple):
    """One register's part in an access."""

    register: str
    """The full name, as in `CHANNEL[3].CTRL`; empty for bytes that no register has."""
    value: int
    """The bits that the access carries, at their place in the register (in the access where there is none)."""
    mask: int
    """Which bits of the register those are."""
    fields: tuple[FieldValue, ...]
    """The fields, the lowest first. Bits of no field come last, and only where they are not what they always are."""

    def __str__(self) -> str:
        if self.register == UNMAPPED:
            return f"(no register) {self.value:#x}"
        fields = " ".join(str(field) for field in self.fields)
        return f"{self.register} {self.value:#x}{f' ({fields})' if fields else ''}"


Describer = Callable[[int], list[RegisterAccess]]


def describer(layout: Layout, offset: int, size: int, is_write: bool) -> Describer:
    """Return what describes the value of an access at this offset."""
    parts, unmapped = layout.parts(offset, size, is_write)
    makers = [_part_describer(part) for part in parts]

    def describe(value: int) -> list[RegisterAccess]:
        described = [make(value) for make in makers]
        if unmapped:
            described.append(RegisterAccess(UNMAPPED, value & unmapped, unmapped, ()))
        return described

    return describe


def _part_describer(part: Part) -> Callable[[int], RegisterAccess]:
    slot, shift, mask = part
    register = slot.register
    name = slot.name
    fields = [_field_describer(field, mask) for field in sorted(register.fields, key=_lsb) if field.mask & mask]
    rest = register.rest_mask & mask if register.fields else 0  # one without fields: its value says it
    normal = rest if register.rest == RES1 else 0

    def describe(value: int) -> RegisterAccess:
        value = (value << shift if shift >= 0 else value >> -shift) & mask
        found = [make(value) for make in fields]
        if value & rest != normal:
            found += _odd_bits(value, rest, normal)
        return RegisterAccess(name, value, mask, tuple(found))

    return describe


def _field_describer(field: FieldEntry, mask: int) -> Callable[[int], FieldValue]:
    covered = field.mask & mask
    lsb = (covered & -covered).bit_length() - 1
    if covered == field.mask:
        name, names = field.name, {item.value: item.name for item in field.values}
    else:
        name, names = field.name + bit_range(covered.bit_length() - 1 - field.lsb, lsb - field.lsb), {}

    def describe(value: int) -> FieldValue:
        value = (value & covered) >> lsb
        return FieldValue(name, value, names.get(value, ""))

    return describe


def _odd_bits(value: int, rest: int, normal: int) -> list[FieldValue]:
    """The runs of bits that no field has, and that are not what they always are."""
    runs: list[FieldValue] = []
    while rest:
        lsb = (rest & -rest).bit_length() - 1
        width = (~(rest >> lsb) & (rest >> lsb) + 1).bit_length() - 1
        run = (1 << width) - 1 << lsb
        if (value ^ normal) & run:
            runs.append(FieldValue(bit_range(lsb + width - 1, lsb), (value & run) >> lsb))
        rest &= ~run
    return runs


def _lsb(field: FieldEntry) -> int:
    return field.lsb
