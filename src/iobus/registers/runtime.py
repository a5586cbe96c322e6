"""A bank made at run time of a register map: what the importers' `from_...` functions return.

Stands on `bank.py`. The class is what a class body with the same declarations would have made, and a base
for a device like any other. Where a name of the map is none that Python takes, or has a meaning already,
`identifier` says what the attribute is called; hooks may name their target in a string, as the map does.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from iobus.registers.bank import RegisterBank
from iobus.registers.entries import Entry, FieldEntry, RegisterEntry, RegisterMap, check
from iobus.registers.fields import Bits, Field, Values
from iobus.registers.language import Array, Declared, Register, RegisterGroup, is_taken


class BuiltBank(RegisterBank):
    """A bank whose registers are known at run time only."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def build(bank: RegisterMap) -> type[BuiltBank]:
    """Return a class of devices with these registers. Raises `MapError`."""
    check(bank)
    body: dict[str, Any] = {"__doc__": bank.doc or None, "name": bank.name}
    body.update(_declarations(bank.members, RegisterBank))
    name = identifier(bank.name, object)
    made: type[BuiltBank] = Declared(name, (BuiltBank,), body, length=bank.length, unmapped=bank.unmapped)
    return made


def identifier(name: str, base: type) -> str:
    """Return what the attribute for `name` is called in a class derived from `base`."""
    name = re.sub(r"\W", "_", name)
    if name[:1].isdigit():
        name = f"x{name}"
    while keyword.iskeyword(name) or keyword.issoftkeyword(name) or is_taken(base, name):
        name = f"{name.lstrip('_') or 'x'}_"
    return name


def identifiers(names: Iterable[str], base: type) -> dict[str, str]:
    """Return what the attributes for `names` are called, each different from the others."""
    found: dict[str, str] = {}
    for name in names:
        attribute = identifier(name, base)
        while attribute in found.values():
            attribute += "_"
        found[name] = attribute
    return found


def _declarations(members: tuple[Entry, ...], base: type) -> dict[str, Any]:
    attributes = identifiers((member.name for member in members), base)
    return {attributes[member.name]: _declaration(member) for member in members}


def _declaration(member: Entry) -> Register | RegisterGroup | Array[Any]:
    array = member.array
    if isinstance(member, RegisterEntry):
        register = _register_class(member)
        if array is None:
            return register(member.offset, reset=member.reset, name=member.name)
        return register.array(member.offset, array.count, stride=array.stride, reset=member.reset, name=member.name)
    body: dict[str, Any] = {"__doc__": member.doc or None, **_declarations(member.members, RegisterGroup)}
    group: type[RegisterGroup] = Declared(member.name, (RegisterGroup,), body)
    if array is None:
        return group(member.offset, name=member.name)
    return group.array(member.offset, array.count, stride=array.stride, name=member.name)


def _register_class(register: RegisterEntry) -> type[Register]:
    attributes = identifiers((field.name for field in register.fields), Register)
    body: dict[str, Any] = {"__doc__": register.doc or None}
    body.update({attributes[field.name]: _field(field) for field in register.fields})
    made: type[Register] = Declared(register.name, (Register,), body, width=register.width, rest=register.rest)
    return made


def _field(field: FieldEntry) -> Field:
    named = [(item.name, (item.value, item.doc)) for item in field.values]
    values: Any = Values(field.name, named) if named else None  # type: ignore[arg-type]  # the way to make an enum
    return Field(Bits(field.msb, field.lsb), field.access, field.doc, values=values, name=field.name)
