"""From what a file says to a register map that can be: what does not fit is left out, and noted in a line.

Stands on `fields.py`, below the importers (`systemrdl.py`, `svd.py`, `ipxact.py`). Files of vendors have registers
that overlap, reset values of bits that hold nothing, names that are none. A `Fitter` makes entries of their parts;
each of its notes says where in the file something is that the map does not have.
"""

from __future__ import annotations

import itertools
import keyword
import re
import warnings
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from iobus.registers.entries import (
    MOST_REGISTERS,
    WIDTHS,
    Dimension,
    Entry,
    FieldEntry,
    GroupEntry,
    MapError,
    RegisterEntry,
    RegisterMap,
    Unmapped,
    ValueEntry,
    check,
    clean,
    count_of,
    end_of,
    placed,
)
from iobus.registers.fields import Values
from iobus.registers.kinds import RES0, RES1, Access, R

T = TypeVar("T")

TEXT: Final = "<text>"
"""What a source is called that is no file."""


class MapWarning(UserWarning):
    """Something in a file of registers that the device does not have: one line that says what, and where."""


class Imported(NamedTuple):
    """What an importer read."""

    map: RegisterMap
    notes: tuple[str, ...]
    """What the map has not of the file, or not as the file has it: a line each, which begins with where it is."""

    def warn(self) -> RegisterMap:
        """Return the map, with a `MapWarning` for each note."""
        for note in self.notes:
            warnings.warn(note, MapWarning, stacklevel=3)
        return self.map


class Fitter:
    """Makes entries that can be of a file's. `where` is what a note begins with: the file and the place in it."""

    def __init__(self) -> None:
        self.notes: Final[list[str]] = []

    def note(self, where: str, what: str) -> None:
        """Say that something of the file is not in the map, or not as it is there."""
        self.notes.append(f"{where}: {what}")

    def field(
        self, where: str, name: str, lsb: int, width: int, access: Access, doc: str = "",
        values: Iterable[ValueEntry] = (),
    ) -> FieldEntry:  # fmt: skip
        """Return the field, with those of its named values that it can have."""
        self._named(where, name, f"the field at bit {lsb}")
        kept: list[ValueEntry] = []
        for value in values:
            if not 0 <= value.value < 1 << max(width, 0):
                self.note(where, f"value {value.name}={value.value:#x} does not fit in {width} bits; left out")
            elif other := next((other for other in kept if other.value == value.value), None):
                self.note(where, f"value {value.name}={value.value:#x} is called {other.name} already; left out")
            else:
                called = _another(value_name(value.name), {other.name for other in kept})
                kept.append(replace(value, name=called, doc=clean(value.doc)))
        return FieldEntry(map_name(name), lsb, width, access, clean(doc), tuple(kept))

    def register(
        self, where: str, name: str, offset: int, width: int, fields: Sequence[tuple[str, FieldEntry]], reset: int,
        rest: Access = RES0, doc: str = "", array: Dimension | None = None,
    ) -> RegisterEntry | None:  # fmt: skip
        """Return the register with those of `fields` (each with its place) that fit, or None for one that cannot be."""
        self._named(where, name, f"the register at offset {offset:#x}")
        if width not in WIDTHS:
            self.note(where, f"it is {width} bits wide, and registers are 8, 16, 32 or 64; left out")
            return None
        kept = self._fields(fields, width)
        entry = RegisterEntry(map_name(name), offset, width, tuple(kept), 0, rest, clean(doc), array)
        reset &= (1 << width) - 1
        if entry.rest_mask & reset and rest == RES0:  # reserved bits that are 1
            entry = replace(entry, rest=R)
        for mask, access in entry.pieces():
            if not access.keeps:
                reset = reset | mask if access == RES1 else reset & ~mask
        return replace(entry, reset=reset) if self._array(where, entry) else None

    def group(
        self, where: str, name: str, offset: int, members: Iterable[tuple[str, Entry]], doc: str = "",
        array: Dimension | None = None,
    ) -> GroupEntry | None:  # fmt: skip
        """Return the group with those of `members` (each with its place) that fit, or None for one without any."""
        self._named(where, name, f"the group at offset {offset:#x}")
        kept = self._members(members)
        if not kept:
            return None
        entry = GroupEntry(map_name(name), offset, kept, clean(doc), array)
        return entry if self._array(where, entry) else None

    def bank(
        self, where: str, name: str, members: Iterable[tuple[str, Entry]], length: int = 0, doc: str = "",
        unmapped: Unmapped = "zero",
    ) -> Imported:  # fmt: skip
        """Return the map with those of `members` that fit. `length` grows to the end of the last one."""
        kept = self._members(members)
        if not kept:
            said = f" ({'; '.join(self.notes)})" if self.notes else ""
            raise MapError(f"{where}: there are no registers{said}")
        length = max(length, *(end_of(member) for member in kept))
        bank = RegisterMap(map_name(name), kept, length, unmapped, clean(doc))
        check(bank)
        return Imported(bank, tuple(self.notes))

    def _named(self, where: str, name: str, what: str) -> None:
        if not re.search(r"\w", name):
            self.note(where.removesuffix("."), f"{what} has no name; it is called {map_name(name)}")

    def _fields(self, fields: Sequence[tuple[str, FieldEntry]], width: int) -> list[FieldEntry]:
        kept: list[FieldEntry] = []
        for where, field in sorted(fields, key=lambda item: item[1].lsb):
            taken = next((other for other in kept if other.mask & field.mask), None) if field.width > 0 else None
            if field.width < 1 or field.lsb < 0 or field.msb >= width:
                self.note(where, f"{field} is outside of the register, which is {width} bits wide; left out")
            elif taken is not None:
                self.note(where, f"{field} overlaps {taken}; left out")
            else:
                kept.append(replace(field, name=_another(field.name, {other.name for other in kept})))
        return kept

    def _array(self, where: str, entry: Entry) -> bool:
        array = entry.array
        if array is None:
            return True
        if array.count < 1 or array.stride < entry.size:
            self.note(where, f"{array.count} elements of {entry.size:#x} bytes, {array.stride:#x} apart; left out")
            return False
        return True

    def _members(self, members: Iterable[tuple[str, Entry]]) -> tuple[Entry, ...]:
        kept: list[Entry] = []
        count = 0
        taken: dict[int, list[tuple[int, RegisterEntry, str]]] = {}
        for where, member in sorted(members, key=lambda item: item[1].offset):
            count += count_of([member])
            if count > MOST_REGISTERS:
                self.note(where, f"with it there are {count} registers; so many are memory; left out")
                count -= count_of([member])
                continue
            spans = [(item.offset, item.register, item.name) for item in placed([member])]
            if any(member.name == other.name for other in kept):
                self.note(where, f"there is a {member.name} already; left out")
            elif odd := next((span for span in spans if span[0] < 0 or span[0] % span[1].size), None):
                self.note(where, f"offset {odd[0]:#x} is no multiple of its {odd[1].size} bytes; left out")
            elif other := next((found for span in spans if (found := _in_the_way(taken, span))), ""):
                self.note(where, f"it overlaps {other} at offset {member.offset:#x}; left out")
            else:
                kept.append(member)
                for span in spans:
                    for byte in range(span[0], span[0] + span[1].size):
                        taken.setdefault(byte, []).append(span)
        return tuple(kept)


def _in_the_way(
    taken: dict[int, list[tuple[int, RegisterEntry, str]]], span: tuple[int, RegisterEntry, str]
) -> str:  # fmt: skip
    """The name of a register that cannot share its bytes with this one: only a pair, for reads and for writes, can."""
    offset, register, _ = span
    for byte in range(offset, offset + register.size):
        for at, other, name in taken.get(byte, ()):
            same = (at, other.size) == (offset, register.size)
            apart = not (other.readable and register.readable) and not (other.writable and register.writable)
            if not (same and apart):
                return name
    return ""


def _another(name: str, taken: Container[str]) -> str:
    """`name`, with a number behind it where it is taken: vendors call several fields RESERVED."""
    others = (f"{name}_{number}" for number in itertools.count(2))
    return next(item for item in itertools.chain([name], others) if item not in taken)


def map_name(name: str) -> str:
    """A file's name as maps have it."""
    return re.sub(r"\W+", "_", name.strip()) or "_"


def value_name(name: str) -> str:
    """A file's name of a value as Python takes it: none that has a meaning for every enumeration, as `name` has."""
    name = map_name(name).lstrip("_") or "x"
    if not name.isidentifier() or name[0].isdigit():
        name = f"x{name}"
    taken = name in ("mro", "doc") or any(name in vars(parent) for parent in Values.__mro__)
    return f"{name}_" if keyword.iskeyword(name) or taken else name


def source_text(source: str | Path) -> tuple[str, bytes | None]:
    """What a source is called in messages, and its contents where it is text: text has a line end or a bracket."""
    if isinstance(source, str) and re.search(r"[\n{<]", source):
        return TEXT, source.encode()
    return str(source), None


def read_source(source: str | Path) -> tuple[str, bytes]:
    """What a source is called, and its contents. Raises `MapError` where the file cannot be read."""
    name, text = source_text(source)
    if text is not None:
        return name, text
    try:
        return name, Path(source).read_bytes()
    except OSError as exc:
        raise MapError(f"{name} cannot be read: {exc.strerror}") from exc


def needs(package: str, what: str, load: Callable[[], T]) -> T:
    """Return what `load` imports of an optional `package`. Raises `MapError` where it is not there."""
    try:
        return load()
    except ModuleNotFoundError as exc:
        raise MapError(f"{what} needs {package}, which is not installed: pip install {package}") from exc


def chosen(where: str, what: str, names: Sequence[str], top: str | None) -> str:
    """Return which of `names` is meant: `top`, or the only one. Raises `MapError`, which lists them."""
    if not names:
        raise MapError(f"{where}: there is no {what} in it")
    listed = ", ".join(names)
    if top is not None:
        if top not in names:
            raise MapError(f"{where}: there is no {what} {top!r}; it has {listed}")
        return top
    if len(names) != 1:
        raise MapError(f"{where}: say which {what} is meant with top=; it has {listed}")
    return names[0]
