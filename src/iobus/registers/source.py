"""A register map as Python: `device_source` writes the class body that declares it, with hooks to fill in.

Stands on `runtime.py`, whose `build` makes the same class without the text in between: the map of what is written here
is the map it was written from. `iobus new --from` writes it to a file. The text is formatted as formatters would, in
lines of 88 columns.
"""

from __future__ import annotations

import itertools
import keyword
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from iobus.registers.bank import RegisterBank
from iobus.registers.entries import Entry, FieldEntry, GroupEntry, RegisterEntry, RegisterMap, ValueEntry, end_of
from iobus.registers.kinds import KINDS, RES0, RES1, Access, OnRead, OnWrite
from iobus.registers.language import Register, RegisterGroup
from iobus.registers.runtime import identifiers

_COLUMNS: Final = 88
USED_NAMES: Final = frozenset(
    {access.name for access in KINDS}
    | {"Access", "Field", "OnRead", "OnWrite", "Register", "RegisterBank", "RegisterGroup", "Values"}
    | {"bits", "int", "on_read", "on_write"}
)
"""What is imported or used, and so is no name for a class, nor for an attribute: it would hide it in its class body."""


def class_name(name: str) -> str:
    """A map's name as Python calls classes: `int_status` is `IntStatus`."""
    parts = [part for part in re.split(r"[\W_]+", name) if part]
    camel = "".join(part.capitalize() if part.isupper() else part[0].upper() + part[1:] for part in parts)
    camel = f"X{camel}" if camel[:1].isdigit() else camel or "Device"
    return f"{camel}Device" if keyword.iskeyword(camel) else camel


def device_source(bank: RegisterMap, name: str, doc: str) -> str:
    """Return a Python file with a class `name` of the registers of `bank`; `doc` is the file's docstring."""
    return _Writer(bank, name).text(doc)


def _names(members: Sequence[Entry]) -> Iterator[str]:
    """Everything that a class body has an attribute for: a class by the same name would be hidden there."""
    for member in members:
        yield member.name
        if isinstance(member, RegisterEntry):
            yield from (field.name for field in member.fields)
        else:
            yield from _names(member.members)


def _attributes(names: Iterable[str], base: type) -> dict[str, str]:
    """What the attributes for `names` are called in a class body of the text."""
    attributes = identifiers(names, base)
    for name, attribute in attributes.items():
        while attribute in USED_NAMES or (attribute != attributes[name] and attribute in attributes.values()):
            attribute += "_"
        attributes[name] = attribute
    return attributes


class _Place(NamedTuple):
    """A register as hooks reach it."""

    target: str
    """In the class body: `CHANNEL.each.CTRL`."""
    view: str
    """Through the device: `self.CHANNEL[index].CTRL`."""
    indices: tuple[str, ...]
    register: RegisterEntry


class _Writer:
    def __init__(self, bank: RegisterMap, name: str) -> None:
        self._bank = bank
        self._name = name
        self._used: set[str] = set()  # of what is imported
        self._classes: list[str] = []
        self._taken = {name, *USED_NAMES, *_names(bank.members)}
        self._values: dict[tuple[ValueEntry, ...], str] = {}
        self._registers: dict[tuple[object, ...], tuple[str, RegisterEntry]] = {}
        self._groups: dict[tuple[object, ...], str] = {}
        self._kinds: dict[str, str] = {}

    def text(self, doc: str) -> str:
        bank, name = self._bank, self._name
        self._use("RegisterBank")
        options = ["RegisterBank"]
        if bank.length != max((end_of(member) for member in bank.members), default=0):
            options.append(f"length={hexadecimal(bank.length)}")
        if bank.unmapped != "zero":
            options.append(f'unmapped="{bank.unmapped}"')
        body = [f"class {name}({', '.join(options)}):", *_docstring(1, bank.doc)]
        if bank.name != name:
            body += [f"    name = {_quoted(bank.name)}", ""]
        body += self._members(bank.members, RegisterBank)
        for hook in self._hooks():
            body += ["", *hook]
        body += [
            "",
            "    def update(self) -> None:",
            '        """Bring outputs, such as an interrupt line, in line with the registers."""',
        ]
        head = ["\n".join(_docstring(0, doc)).rstrip(), self._imports(), "\n".join(self._kinds.values())]
        text = "\n\n".join(part for part in head if part)
        return "\n\n\n".join([text, *self._classes, "\n".join(body)]) + "\n"

    def _use(self, name: str) -> str:
        self._used.add(name)
        return name

    def _imports(self) -> str:
        names = sorted(self._used, key=_as_imports_are_sorted)
        line = f"from iobus.registers import {', '.join(names)}"
        if len(line) <= _COLUMNS:
            return line
        return "\n".join(["from iobus.registers import (", *(f"    {name}," for name in names), ")"])

    def _class(self, name: str, suffix: str) -> str:
        """A name for a class that nothing else has."""
        wanted = class_name(name)
        numbered = (f"{wanted}{suffix}{number}" for number in itertools.count(2))
        candidates = itertools.chain([wanted, wanted + suffix], numbered)
        chosen = next(candidate for candidate in candidates if candidate not in self._taken)
        self._taken.add(chosen)
        return chosen

    def _members(self, members: Sequence[Entry], base: type) -> list[str]:
        attributes = _attributes((member.name for member in members), base)
        return [line for member in members for line in self._member(member, attributes[member.name])]

    def _member(self, member: Entry, attribute: str) -> list[str]:
        arguments = [hexadecimal(member.offset)]
        if isinstance(member, RegisterEntry):
            made, written = self._register(member)
            size, doc = written.size, "" if member.doc == written.doc else member.doc
            reset = None if member.reset == written.reset else member.reset
        else:
            made, size, doc, reset = self._group(member), member.size, "", None
        if member.array is not None:
            made += ".array"
            arguments.append(str(member.array.count))
            if member.array.stride != size:
                arguments.append(f"stride={hexadecimal(member.array.stride)}")
        texts = {"doc=" if member.array is not None else "": doc} if doc else {}
        named = [f"reset={hexadecimal(reset)}"] if reset is not None else []
        if attribute != member.name:
            named.append(f"name={_quoted(member.name)}")
        return _call(1, f"{attribute} = {made}", arguments, texts, named)

    # Classes, each once.

    def _register(self, register: RegisterEntry) -> tuple[str, RegisterEntry]:
        """The class of a register, and the register as the class says it."""
        key = register.fields, register.width, register.rest, not register.doc  # a place cannot take a doc away
        if key not in self._registers:
            name = self._class(register.name, "Register")
            written = RegisterEntry(name, 0, register.width, register.fields, self._reset(register), register.rest,
                                    register.doc)  # fmt: skip
            self._registers[key] = name, written
            options = [self._use("Register")]
            if register.width != 32:
                options.append(f"width={register.width}")
            if register.rest != RES0:
                options.append(f"rest={self._kind(register.rest)}")
            attributes = _attributes((field.name for field in register.fields), Register)
            lines = [f"class {name}({', '.join(options)}):", *_docstring(1, register.doc)]
            for field in register.fields:
                lines += self._field(name, field, attributes[field.name], register.reset)
            if not register.fields and not register.doc:
                lines.append("    pass")
            self._classes.append("\n".join(lines).rstrip())
        return self._registers[key]

    def _reset(self, register: RegisterEntry) -> int:
        """The reset value that the class's fields say."""
        rest = register.rest_mask
        return register.reset & ~rest | (rest if register.rest == RES1 else 0)

    def _group(self, group: GroupEntry) -> str:
        key = group.members, group.doc
        if key not in self._groups:
            body = self._members(group.members, RegisterGroup)
            name = self._groups[key] = self._class(group.name, "Group")
            head = f"class {name}({self._use('RegisterGroup')}):"
            self._classes.append("\n".join([head, *_docstring(1, group.doc), *body]))
        return self._groups[key]

    def _field(self, register: str, field: FieldEntry, attribute: str, reset: int) -> list[str]:
        self._use("Field")
        where = str(field.lsb)
        if field.width > 1:
            where = f"{self._use('bits')}({field.msb}, {field.lsb})"
        named: list[str] = []
        value = (reset & field.mask) >> field.lsb
        values = self._values_class(register, field) if field.values else ""
        if value and field.access != RES1:
            member = next((item.name for item in field.values if item.value == value), "")
            named.append(
                f"reset={values}.{member}" if member else f"reset={value if value < 10 else hexadecimal(value)}"
            )
        if values:
            named.append(f"values={values}")
        if attribute != field.name:
            named.append(f"name={_quoted(field.name)}")
        texts = {"": field.doc} if field.doc else {}
        return _call(1, f"{attribute} = Field", [where, self._kind(field.access)], texts, named)

    def _values_class(self, register: str, field: FieldEntry) -> str:
        if field.values not in self._values:
            name = self._values[field.values] = self._class(f"{register}_{class_name(field.name)}", "Values")
            lines = [f"class {name}({self._use('Values')}):"]
            for item in field.values:
                if not item.doc:
                    lines.append(f"    {item.name} = {item.value}")
                    continue
                whole = f"    {item.name} = {item.value}, {_quoted(item.doc)}"
                if len(whole) <= _COLUMNS:
                    lines.append(whole)
                else:
                    pieces = _string(2, "", item.doc)
                    if len(pieces) > 1:  # an implicit concatenation inside of a tuple has brackets
                        pieces[-1] = pieces[-1].rstrip(",")
                        pieces = ["        (", *(f"    {piece}" for piece in pieces), "        ),"]
                    lines += [f"    {item.name} = (", f"        {item.value},", *pieces, "    )"]
            self._classes.append("\n".join(lines))
        return self._values[field.values]

    def _kind(self, access: Access) -> str:
        if access in KINDS:
            return self._use(KINDS[KINDS.index(access)].name)
        name = f"{access.on_read.name}_{access.on_write.name}"
        self._taken.add(name)
        for used in ("Access", "OnRead", "OnWrite"):
            self._use(used)
        self._kinds[name] = "\n".join(_call(
            0, f"{name} = Access", [_quoted(name), f"OnRead.{access.on_read.name}", f"OnWrite.{access.on_write.name}"],
            {}, [],
        ))  # fmt: skip
        return name

    # Hooks for what the device itself must do.

    def _hooks(self) -> Iterator[list[str]]:
        taken = {"update", *_attributes((member.name for member in self._bank.members), RegisterBank).values()}
        for place in self._places(self._bank.members, RegisterBank, "", "self.", ()):
            for is_write in (False, True):
                fields = [field for field in place.register.fields if _asks(field.access, is_write)]
                rest = bool(place.register.rest_mask) and _asks(place.register.rest, is_write)
                if fields or rest:
                    yield self._hook(place, fields, len(fields) == 1 and not rest, is_write, taken)

    def _places(
        self, members: Sequence[Entry], base: type, target: str, view: str, indices: tuple[str, ...]
    ) -> Iterator[_Place]:  # fmt: skip
        attributes = _attributes((member.name for member in members), base)
        for member in members:
            attribute, inner = attributes[member.name], indices
            at, seen = target + attribute, view + attribute
            if member.array is not None:
                index = f"index{len(indices) + 1}" if indices else "index"
                inner = (*indices, index)
                at, seen = f"{at}.each", f"{seen}[{index}]"
            if isinstance(member, RegisterEntry):
                yield _Place(at, seen, inner, member)
            else:
                yield from self._places(member.members, RegisterGroup, f"{at}.", f"{seen}.", inner)

    def _hook(
        self, place: _Place, fields: Sequence[FieldEntry], one_field: bool, is_write: bool, taken: set[str]
    ) -> list[str]:  # fmt: skip
        attributes = _attributes((field.name for field in place.register.fields), Register)
        attribute = f".{attributes[fields[0].name]}" if one_field else ""
        target, view = place.target + attribute, place.view + (attribute or ".value")
        plain = re.sub(r"\.each\b", "", target)
        verb = "write" if is_write else "read"
        name = "_".join([verb, *re.findall(r"[a-z0-9]+", plain.lower())])
        while name in taken or hasattr(RegisterBank, name):
            name += "_"
        taken.add(name)
        doc = fields[0].doc if one_field else place.register.doc
        first = re.split(r"(?<=\.)\s", doc.split("\n\n")[0])[0].rstrip(".")
        said = f"A guest {'wrote' if is_write else 'reads'} {plain}{': ' + first if first else ''}."
        parameters = ["self", *(f"{index}: int" for index in place.indices), *(["value: int"] if is_write else [])]
        lines = [
            f"    @{self._use('on_' + verb)}({target})",
            f"    def {name}({', '.join(parameters)}) -> {'None' if is_write else 'int'}:",
            *_docstring(2, said),
        ]
        while lines[-1] == "":
            lines.pop()
        return lines if is_write else [*lines, f"        return {view}"]


def _asks(access: Access, is_write: bool) -> bool:
    """Whether a kind leaves the effect to the device: an event, a side effect, or a value for it alone to see."""
    if is_write:
        return access.on_write is OnWrite.EFFECT or (access.on_read is OnRead.ZERO and access.writable)
    return access.on_read is OnRead.EFFECT


def _as_imports_are_sorted(name: str) -> tuple[int, str]:
    """Constants, classes, functions: as isort sorts the names of an import."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def hexadecimal(number: int) -> str:
    """As formatters write it."""
    return f"0x{number:X}"


def _quoted(text: str) -> str:
    """A string literal as formatters write it: in double quotes, or in single ones where that saves a backslash."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    plain = ("'", '"')
    return quote + "".join(c if c in plain and c != quote else _escaped(c) for c in text) + quote


def _escaped(character: str) -> str:
    return f"\\{character}" if character in ("'", '"') else repr(character)[1:-1]


def _call(depth: int, made: str, arguments: list[str], texts: dict[str, str], named: list[str]) -> list[str]:
    """`made(arguments, text, named)`, on one line or, where that is too long, with a line for each."""
    indent = "    " * depth
    given = [*arguments, *(f"{key}{_quoted(text)}" for key, text in texts.items()), *named]
    line = f"{indent}{made}({', '.join(given)})"
    if len(line) <= _COLUMNS:
        return [line]
    lines = [f"{indent}{made}("]
    lines += [f"{indent}    {argument}," for argument in arguments]
    for key, text in texts.items():
        lines += _string(depth + 1, key, text)
    lines += [f"{indent}    {argument}," for argument in named]
    return [*lines, f"{indent})"]


def _string(depth: int, key: str, text: str) -> list[str]:
    """A string as an argument, in several literals where it is long."""
    indent = "    " * depth
    whole = f"{indent}{key}{_quoted(text)},"
    if len(whole) <= _COLUMNS:
        return [whole]
    pieces = _pieces(text, _COLUMNS - len(indent) - 12)
    lines = [f"{indent}{_quoted(piece)}" for piece in pieces]
    if key:
        return [f"{indent}{key}(", *(f"    {line}" for line in lines), f"{indent}),"]
    lines[-1] += ","
    return lines


def _pieces(text: str, width: int) -> list[str]:
    """The text cut behind spaces, so that each piece's literal fits."""
    pieces: list[str] = []
    for word in re.findall(r"\S+\s*|\s+", text):
        if pieces and len(_quoted(pieces[-1] + word)) <= width:
            pieces[-1] += word
        else:
            pieces.append(word)
    return pieces


def _docstring(depth: int, doc: str) -> list[str]:
    """A docstring and the empty line behind it; nothing for no description."""
    if not doc:
        return []
    indent = "    " * depth
    safe = doc.replace("\\", "\\\\").replace('"""', '""\\"')
    if safe.startswith('"'):
        safe = f" {safe}"
    if re.search(r'(?<!\\)(\\\\)*"$', safe):  # a quote at the end that no backslash escapes
        safe += " "
    width = _COLUMNS - len(indent)
    if "\n" not in safe and len(safe) + 6 <= width:
        return [f'{indent}"""{safe}"""', ""]
    paragraphs = safe.split("\n\n")
    first = width - 3 if len(safe) > width else width // 2  # one line that is too long for its quotes becomes two
    lines = textwrap.wrap(paragraphs[0], first, break_long_words=False, break_on_hyphens=False)
    for paragraph in paragraphs[1:]:
        lines += ["", *textwrap.wrap(paragraph, width, break_long_words=False, break_on_hyphens=False)]
    if len(lines) == 1:  # one word
        return [f'{indent}"""{safe}"""', ""]
    return [f'{indent}"""{lines[0]}', *(f"{indent}{line}".rstrip() for line in lines[1:]), f'{indent}"""', ""]
