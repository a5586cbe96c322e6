"""A register map as plain data: `RegisterMap` and what it consists of, and the checks it must pass.

Stands on `kinds.py`. It is what a declared device, a SystemRDL file and an SVD file have in common: the
language (`language.py`) makes one of a class body, importers make one of a file, and exporters write one
out. Two maps are equal when they describe the same registers in the same words.

Offsets and sizes are in bytes, positions and widths of fields in bits.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from iobus.bus import IobusError
from iobus.registers.kinds import RES0, RES1, Access

WIDTHS: Final = (8, 16, 32, 64)
"""The widths that a register can have, in bits."""
MOST_REGISTERS: Final = 1 << 16
"""The most registers a map can have, elements of arrays included: what is larger is memory."""

Unmapped = Literal["zero", "ones", "decline"]
"""What an access to bytes of the bank that no register has gets."""


class MapError(IobusError, ValueError):
    """A register map that cannot be: it names the places that are at odds, and the values."""

    def __init__(self, message: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.path = path
        """The names that lead to the offender, without indices; empty where it is no one entry."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """An array: how many elements, and how far apart in bytes."""

    count: int
    stride: int


@dataclass(frozen=True, slots=True)
class ValueEntry:
    """A named value of a field."""

    value: int
    name: str
    doc: str = ""


@dataclass(frozen=True, slots=True)
class FieldEntry:
    """Some adjacent bits of a register that belong together."""

    name: str
    lsb: int
    width: int
    access: Access
    doc: str = ""
    values: tuple[ValueEntry, ...] = ()

    @property
    def msb(self) -> int:
        """The position of the highest bit."""
        return self.lsb + self.width - 1

    @property
    def mask(self) -> int:
        """The field's bits, at their place in the register."""
        return (1 << self.width) - 1 << self.lsb

    def __str__(self) -> str:
        return f"{self.name} {bit_range(self.msb, self.lsb)}"


@dataclass(frozen=True, slots=True)
class RegisterEntry:
    """A register, or an array of equal ones."""

    name: str
    offset: int
    """From the start of the bank, or of the group it is in."""
    width: int = 32
    fields: tuple[FieldEntry, ...] = ()
    reset: int = 0
    rest: Access = RES0
    """The kind of the bits that no field has."""
    doc: str = ""
    array: Dimension | None = None

    @property
    def size(self) -> int:
        """In bytes; of one element."""
        return self.width // 8

    @property
    def rest_mask(self) -> int:
        """The bits that no field has."""
        return ((1 << self.width) - 1) & ~sum(field.mask for field in self.fields)

    def pieces(self) -> Iterator[tuple[int, Access]]:
        """Each field's mask and kind, and the rest's."""
        for field in self.fields:
            yield field.mask, field.access
        if self.rest_mask:
            yield self.rest_mask, self.rest

    @property
    def readable(self) -> bool:
        """Whether a read gives anything but zeros."""
        return any(access.readable or access == RES1 for _, access in self.pieces())

    @property
    def writable(self) -> bool:
        """Whether a write has an effect."""
        return any(access.writable for _, access in self.pieces())


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """Registers that belong together, or an array of equal such groups."""

    name: str
    offset: int
    members: tuple[RegisterEntry | GroupEntry, ...]
    doc: str = ""
    array: Dimension | None = None

    @property
    def size(self) -> int:
        """In bytes, to the end of the last member; of one element."""
        return max((end_of(member) for member in self.members), default=0)


Entry = RegisterEntry | GroupEntry


@dataclass(frozen=True, slots=True)
class RegisterMap:
    """All the registers of a device."""

    name: str
    members: tuple[Entry, ...]
    length: int
    """Of the range that the device claims, in bytes."""
    unmapped: Unmapped = "zero"
    doc: str = ""


class Placed(NamedTuple):
    """One register of a map, arrays and groups resolved."""

    name: str
    """Its full name: `CTRL`, `CHANNEL[3].CTRL`."""
    offset: int
    """From the start of the bank."""
    register: RegisterEntry
    indices: tuple[int, ...]
    """Which element it is of each array around it, the outermost first."""
    path: tuple[str, ...]
    """The names it is reached by, without the indices."""


def placed(members: Sequence[Entry]) -> Iterator[Placed]:
    """Give every register, in the order of the declaration, elements of an array one behind the other."""
    for member in members:
        array = member.array or Dimension(1, 0)
        inner = [Placed("", 0, member, (), ())] if isinstance(member, RegisterEntry) else list(placed(member.members))
        for index in range(array.count):
            name = member.name if member.array is None else f"{member.name}[{index}]"
            offset = member.offset + index * array.stride
            indices = () if member.array is None else (index,)
            for item in inner:
                yield Placed(
                    f"{name}.{item.name}" if item.name else name,
                    offset + item.offset,
                    item.register,
                    indices + item.indices,
                    (member.name, *item.path),
                )


def end_of(entry: Entry) -> int:
    """The offset of the first byte behind an entry, its whole array included."""
    array = entry.array or Dimension(1, 0)
    return entry.offset + (array.count - 1) * array.stride + entry.size


def count_of(members: Sequence[Entry]) -> int:
    """How many registers there are, elements of arrays included."""
    return sum(
        (member.array.count if member.array else 1)
        * (1 if isinstance(member, RegisterEntry) else count_of(member.members))
        for member in members
    )


def bit_range(msb: int, lsb: int) -> str:
    """`[7:4]`, or `[3]` for one bit, as datasheets write it."""
    return f"[{msb}]" if msb == lsb else f"[{msb}:{lsb}]"


def clean(doc: str) -> str:
    """A description as maps have it: paragraphs of single-spaced text, with an empty line between them."""
    text = "".join(character if character.isprintable() or character.isspace() else " " for character in doc)
    paragraphs = re.split(r"\n[^\S\n]*\n\s*", text)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.split())


# The checks.


def check(bank: RegisterMap) -> None:
    """Raise `MapError` where the map cannot be."""
    if bank.unmapped not in ("zero", "ones", "decline"):
        raise MapError(f"{bank.name}: unmapped={bank.unmapped!r}; use 'zero', 'ones' or 'decline'")
    if not isinstance(bank.length, int) or bank.length < 0:
        raise MapError(f"{bank.name}: length={bank.length!r}; give a whole number of bytes")
    check_group(bank.name, bank.members)
    end = max((end_of(member) for member in bank.members), default=0)
    if end > bank.length:
        last = max(bank.members, key=end_of)
        raise MapError(f"{bank.name}: {last.name} ends at {end:#x}, outside of the length {bank.length:#x} of the bank")


def check_group(where: str, members: Sequence[Entry]) -> None:
    """Raise `MapError` where these cannot be members of one bank or group."""
    if count_of(members) > MOST_REGISTERS:
        raise MapError(
            f"{where}: {count_of(members)} registers are more than {MOST_REGISTERS}; "
            "so many are memory, which is no bank of registers"
        )
    _check_members(where, members, ())
    _check_overlaps(where, members)


def _check_members(where: str, members: Sequence[Entry], path: tuple[str, ...]) -> None:
    seen: dict[str, Entry] = {}
    for member in members:
        _check_name(where, member.name)
        at = (*path, member.name)
        if member.name in seen:
            raise MapError(
                f"{where}: two members are called {member.name}, "
                f"at offset {seen[member.name].offset:#x} and at {member.offset:#x}",
                at,
            )
        seen[member.name] = member
        name = f"{where}.{member.name}"
        if member.offset < 0:
            raise MapError(f"{name}: offset {member.offset} is negative", at)
        if isinstance(member, RegisterEntry):
            check_fields(name, member)
            check_reset(name, member)
        elif not member.members:
            raise MapError(f"{name}: the group has no registers", at)
        else:
            _check_members(name, member.members, at)
        if member.array is not None:
            _check_array(name, member, member.array, at)


def _check_array(name: str, entry: Entry, array: Dimension, at: tuple[str, ...]) -> None:
    if array.count < 1:
        raise MapError(f"{name}: an array of {array.count} elements; it has at least 1", at)
    if array.stride < entry.size:
        raise MapError(
            f"{name}: elements {array.stride:#x} bytes apart overlap, for each has {entry.size:#x} bytes", at
        )


def _check_name(where: str, name: str) -> None:
    if not re.fullmatch(r"\w+", name):
        raise MapError(f"{where}: {name!r} is no name; use letters, digits and underscores")


def check_fields(where: str, register: RegisterEntry) -> None:
    """Raise `MapError` where the register's width or fields cannot be."""
    if register.width not in WIDTHS:
        raise MapError(f"{where}: a register is 8, 16, 32 or 64 bits wide, not {register.width!r}")
    taken: dict[int, FieldEntry] = {}
    names: dict[str, FieldEntry] = {}
    for field in register.fields:
        _check_field(where, field, register.width)
        if field.name in names:
            raise MapError(f"{where}: two fields are called {field.name}: {names[field.name]} and {field}")
        names[field.name] = field
        for bit in range(field.lsb, field.msb + 1):
            if bit in taken:
                raise MapError(f"{where}: fields {taken[bit]} and {field} overlap at bit {bit}")
            taken[bit] = field


def check_reset(where: str, register: RegisterEntry) -> None:
    """Raise `MapError` where the register, its fields being right, cannot have its reset value."""
    if not 0 <= register.reset < 1 << register.width:
        raise MapError(f"{where}: reset value {register.reset:#x} does not fit in {register.width} bits")
    for mask, access in register.pieces():
        wrong = register.reset & mask ^ (mask if access == RES1 else 0)
        if not access.keeps and wrong:
            raise MapError(
                f"{where}: reset value {register.reset:#x} is impossible at bit {wrong.bit_length() - 1}: "
                f"it is {access}, which is always {1 if access == RES1 else 0}"
            )


def _check_field(where: str, field: FieldEntry, width: int) -> None:
    _check_name(where, field.name)
    if field.width < 1 or field.lsb < 0:
        raise MapError(f"{where}.{field.name}: {field.width} bits at bit {field.lsb}; it has at least 1, from bit 0 on")
    if field.msb >= width:
        raise MapError(
            f"{where}: field {field} is outside of the register, which is {width} bits wide: [{width - 1}:0]"
        )
    seen: dict[int, ValueEntry] = {}
    names: set[str] = set()
    for value in field.values:
        if not value.name.isidentifier() or keyword.iskeyword(value.name) or value.name.startswith("_"):
            raise MapError(f"{where}: field {field} has a value called {value.name!r}, which Python takes for no name")
        if not 0 <= value.value < 1 << field.width:
            raise MapError(
                f"{where}: value {value.name}={value.value:#x} does not fit in the {field.width} bits of {field}"
            )
        if value.value in seen or value.name in names:
            what = f"{seen[value.value].name} and {value.name}" if value.value in seen else f"{value.name} twice"
            raise MapError(f"{where}: field {field} has {what} for a value; a value has one name")
        seen[value.value] = value
        names.add(value.name)


def _check_overlaps(where: str, members: Sequence[Entry]) -> None:
    """Two registers may share their bytes only as a pair: one for reads, the other for writes."""
    last: list[Placed] = []
    for item in sorted(placed(members), key=lambda item: item.offset):
        if item.offset % item.register.size:
            raise MapError(
                f"{where}: {item.name} is at offset {item.offset:#x}, "
                f"which is no multiple of its {item.register.size} bytes",
                item.path,
            )
        last = [other for other in last if other.offset + other.register.size > item.offset]
        for other in last:
            if not _is_pair(other, item):
                raise MapError(
                    f"{where}: {_extent(other)} and {_extent(item)} overlap; "
                    "registers share an address only where one is read only and the other write only",
                    item.path,
                )
        last.append(item)


def _is_pair(one: Placed, other: Placed) -> bool:
    if (one.offset, one.register.size) != (other.offset, other.register.size):
        return False
    a, b = one.register, other.register
    return not (a.readable and b.readable) and not (a.writable and b.writable)


def _extent(item: Placed) -> str:
    return f"{item.name} [{item.offset:#x}, {item.offset + item.register.size:#x})"
