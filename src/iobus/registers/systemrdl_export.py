"""SystemRDL 2.0 out: `to_systemrdl` writes a device's register map down, for every tool that reads SystemRDL.

Stands on `systemrdl.py`, whose reading of the text gives an equal map, its registers in the order of their
offsets. What SystemRDL has no words for is said in properties of our own (`iobus_...`), which the text declares: other
tools carry them along.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from iobus.registers.bank import RegisterBank
from iobus.registers.entries import (
    Entry,
    FieldEntry,
    MapError,
    RegisterEntry,
    RegisterMap,
    end_of,
)
from iobus.registers.kinds import RES0, Access, OnRead, OnWrite
from iobus.registers.systemrdl import ACCESS, LENGTH, REST, UNMAPPED

_ON_READ: Final = {OnRead.CLEARS: "rclr", OnRead.SETS: "rset", OnRead.EFFECT: "ruser"}
_ON_WRITE: Final = {
    OnWrite.ONE_CLEARS: "woclr", OnWrite.ONE_SETS: "woset", OnWrite.ONE_TOGGLES: "wot",
    OnWrite.ZERO_CLEARS: "wzc", OnWrite.ZERO_SETS: "wzs", OnWrite.ZERO_TOGGLES: "wzt",
    OnWrite.CLEARS: "wclr", OnWrite.SETS: "wset", OnWrite.EFFECT: "wuser",
}  # fmt: skip
_PROPERTIES: Final = (
    (ACCESS, "string", "field"), (REST, "boolean", "field"), (LENGTH, "longint unsigned", "addrmap"),
    (UNMAPPED, "string", "addrmap"),
)  # fmt: skip


def to_systemrdl(device: RegisterBank | type[RegisterBank] | RegisterMap) -> str:
    """Return the SystemRDL text of a device's register map.

    Raises `MapError` for what SystemRDL cannot say: a name that is none there, arrays whose elements lie between each
    other. A description's `<%`, which begins a piece of Perl there, is written as `< %`.
    """
    bank = device if isinstance(device, RegisterMap) else device.map
    lines = [*_addrmap(bank)]
    used = "\n".join(lines)
    declared = [
        f"property {name} {{ type = {type_}; component = {component}; }};"
        for name, type_, component in _PROPERTIES
        if f" {name} = " in used
    ]
    return "\n".join([*declared, *([""] if declared else []), *lines]) + "\n"


def _addrmap(bank: RegisterMap) -> Iterator[str]:
    yield f"addrmap {_name(bank.name, bank.name)} {{"
    yield from _doc(1, bank.doc)
    if bank.length != max((end_of(member) for member in bank.members), default=0):
        yield _line(1, f"{LENGTH} = {bank.length:#x};")
    if bank.unmapped != "zero":
        yield _line(1, f'{UNMAPPED} = "{bank.unmapped}";')
    yield from _members(1, bank.name, bank.members)
    yield "};"


def _members(depth: int, where: str, members: Sequence[Entry]) -> Iterator[str]:
    if not members:
        raise MapError(f"{where}: it has no registers, which SystemRDL does not take")
    ordered = sorted(members, key=lambda member: member.offset)
    last: Entry | None = None
    for member in ordered:
        if last is not None and end_of(last) > member.offset and not _is_pair(last, member):
            raise MapError(f"{where}: {last.name} and {member.name} lie between each other, which SystemRDL cannot say")
        last = member if last is None or end_of(member) >= end_of(last) else last
        if isinstance(member, RegisterEntry):
            yield from _register(depth, f"{where}.{member.name}", member)
        else:
            yield _line(depth, "regfile {")
            yield from _doc(depth + 1, member.doc)
            yield from _members(depth + 1, f"{where}.{member.name}", member.members)
            yield _line(depth, f"}} {_place(where, member)};")


def _is_pair(one: Entry, other: Entry) -> bool:
    """Whether the two may be at one address: the map is checked, so these are one for reads and one for writes."""
    return isinstance(one, RegisterEntry) and isinstance(other, RegisterEntry) and one.array is None is other.array


def _place(where: str, member: Entry) -> str:
    array = "" if member.array is None else f"[{member.array.count}]"
    stride = "" if member.array is None else f" += {member.array.stride:#x}"
    return f"{_name(where, member.name)}{array} @ {member.offset:#x}{stride}"


def _register(depth: int, where: str, register: RegisterEntry) -> Iterator[str]:
    kinds = [access for _, access in register.pieces()]
    external = any(access.on_read is OnRead.EFFECT or access.on_write is OnWrite.EFFECT for access in kinds)
    yield _line(depth, "reg {")
    yield from _doc(depth + 1, register.doc)
    if register.width != 32:
        yield _line(depth + 1, f"regwidth = {register.width};")
    for field in register.fields:
        yield from _field(depth + 1, where, field, register.reset)
    if register.rest != RES0 or not register.fields:
        for field in _rest(register):
            yield from _field(depth + 1, where, field, register.reset, is_rest=True)
    yield _line(depth, f"}} {'external ' if external else ''}{_place(where, register)};")


def _rest(register: RegisterEntry) -> Iterator[FieldEntry]:
    """The runs of bits that no field has, as fields."""
    mask, names = register.rest_mask, {field.name for field in register.fields}
    while mask:
        lsb = (mask & -mask).bit_length() - 1
        width = (~(mask >> lsb) & (mask >> lsb) + 1).bit_length() - 1
        name = f"rest_{lsb}"
        while name in names:
            name += "_"
        yield FieldEntry(name, lsb, width, register.rest)
        mask &= ~((1 << width) - 1 << lsb)


def _field(depth: int, where: str, field: FieldEntry, reset: int, is_rest: bool = False) -> Iterator[str]:
    name = _name(where, field.name)
    yield _line(depth, "field {")
    yield from _doc(depth + 1, field.doc)
    if is_rest:
        yield _line(depth + 1, f"{REST} = true;")
    for said in _access(field.access):
        yield _line(depth + 1, said)
    if field.values:
        yield _line(depth + 1, "enum values {")
        for value in field.values:
            doc = f" {{ desc = {_string(value.doc)}; }}" if value.doc else ""
            yield _line(depth + 2, f"{_name(where, value.name)} = {field.width}'h{value.value:x}{doc};")
        yield _line(depth + 1, "};")
        yield _line(depth + 1, "encode = values;")
    number = (reset & field.mask) >> field.lsb
    start = f" = {field.width}'h{number:x}" if number else ""
    yield _line(depth, f"}} {name}[{field.msb}:{field.lsb}]{start};")


def _access(access: Access) -> Iterator[str]:
    """The properties that say what software can do; and hw, what is left for the device to do with the field."""
    if access.on_read in (OnRead.ONE, OnRead.ZERO) and not access.writable:  # a constant, which others see as such
        yield "sw = r; hw = na;"
        yield f'{ACCESS} = "{access.on_read.name}/{access.on_write.name}";'
        return
    sw = ("r" if access.readable else "") + ("w" if access.writable else "")
    if access.on_write is OnWrite.ONCE:
        sw += "1"
    hw = "w" if not access.writable else "rw" if access.readable else "r"
    yield f"sw = {sw}; hw = {hw};"
    if access.on_read in _ON_READ:
        yield f"onread = {_ON_READ[access.on_read]};"
    if access.on_write in _ON_WRITE:
        yield f"onwrite = {_ON_WRITE[access.on_write]};"


def _doc(depth: int, doc: str) -> Iterator[str]:
    if doc:
        yield _line(depth, f"desc = {_string(doc)};")


def _string(text: str) -> str:
    text = text.replace("<%", "< %")  # which would begin a piece of Perl, also in a string
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _name(where: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise MapError(f"{where}: {name!r} is no name in SystemRDL, where it has letters, digits and underscores")
    return f"\\{name}" if name in _KEYWORDS else name


def _line(depth: int, text: str) -> str:
    return "    " * depth + text


# SystemRDL 2.0, the keywords of table 2 and the reserved words of table 3.
_RESERVED: Final = """
    abstract accesstype addressingtype addrmap alias all alternate bit boolean bothedge byte compact component
    componentwidth constraint default encode enum external false field fullalign hw inside int internal level longint
    mem na negedge nonsticky number onreadtype onwritetype posedge precedencetype property r rclr real ref reg
    regalign regfile rset ruser rw rw1 shortint shortreal signal signed string struct sw this true type unsigned w w1
    wclr with within woclr woset wot wr wset wuser wzc wzs wzt
"""
_KEYWORDS: Final = frozenset(_RESERVED.split())
