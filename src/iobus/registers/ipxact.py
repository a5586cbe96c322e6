"""IP-XACT in: `from_ipxact` makes a device class of a component's memory map, at run time.

Beside `systemrdl.py` and `svd.py`, on `fitting.py`. The file is read by `ipyxact` (the extra `maps`), which
knows the versions 1.4 and 1.5 of SPIRIT, IEEE 1685-2009 and 1685-2014; here its objects become a `RegisterMap`. What
it does not read (register files in register files, banks, remapping, arrays with more than one index) is looked for
in the XML, and said.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from iobus.registers.entries import Dimension, Entry, FieldEntry, MapError, ValueEntry
from iobus.registers.fitting import Fitter, Imported, chosen, needs, read_source
from iobus.registers.kinds import RES0, Access
from iobus.registers.runtime import BuiltBank, build
from iobus.registers.svd import access_kind, parse_xml

_ROOTS: Final = ("http://www.spiritconsortium.org/XMLSchema/SPIRIT/", "http://www.accellera.org/XMLSchema/IPXACT/")
_PLACES: Final = {
    "register": ("addressOffset",),
    "registerFile": ("addressOffset",),
    "field": ("bitOffset", "bitWidth"),
}
"""What an element cannot be placed without."""
_UNREAD: Final = {
    "bank": "a bank of address blocks is not read",
    "memoryRemap": "what is mapped in other modes is not read",
    "alternateRegister": "a register's layout in other modes is not read",
    "subspaceMap": "what lies behind a bridge is not read",
    "writeValueConstraint": "writes are not held to it: check them in an on_write hook",
}


def from_ipxact(source: str | Path, top: str | None = None) -> type[BuiltBank]:
    """Return a class of devices with the registers of an IP-XACT component: a base for a device, or one itself.

    `source` is the path of a component's file, or its text. `top` names the memory map, or, as in `"map.block"`, one of
    its address blocks; it can be left out where there is only one map. What a device cannot have is left out, with a
    `MapWarning` that says what and where.

    Raises `MapError` where the file cannot be read, and where `ipyxact` is not installed.
    """
    return build(read_ipxact(source, top).warn())


def read_ipxact(source: str | Path, top: str | None = None) -> Imported:
    """Return the register map and what it has not, as `from_ipxact` takes it. Raises `MapError`."""
    name, text = read_source(source)
    return _Reader(name).bank(name, text, top)


class _Reader:
    """Turns ipyxact's objects into entries."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._fit = Fitter()

    def bank(self, name: str, text: bytes, top: str | None) -> Imported:
        root = parse_xml(name, text)
        component = self._component(root)
        maps = {item.name: item for item in getattr(component.memoryMaps, "memoryMap", ())}
        map_name, _, block_name = (top or "").partition(".")
        map_name = chosen(name, "memory map", list(maps), map_name or None)
        memory_map = maps[map_name]
        own = f"{name}: {map_name}"
        self._fit.notes[:] = [note for note in self._fit.notes if note.startswith((f"{own}.", f"{own}:"))]
        if memory_map.addressUnitBits not in (0, 8):
            bits = memory_map.addressUnitBits
            raise MapError(f"{name}: {map_name}: addressUnitBits is {bits}; iobus counts bytes, of 8")
        blocks = {block.name: block for block in memory_map.addressBlock if block.usage in ("", None, "register")}
        for block in memory_map.addressBlock:
            if block.name not in blocks:
                self._fit.note(f"{name}: {map_name}.{block.name}", f"it is for {block.usage}, not registers; left out")
        self._unread(root, map_name)
        if block_name or len(blocks) == 1:
            block = blocks[chosen(name, f"address block of {map_name}", list(blocks), block_name or None)]
            where = f"{name}: {map_name}.{block.name}"
            members = self._members(where, block, block.access or "")
            doc = block.description or memory_map.description or component.description or ""
            return self._fit.bank(where, block_name or component.name or block.name, members, block.range, doc)
        return self._fit.bank(
            f"{name}: {map_name}", component.name or map_name, self._groups(f"{name}: {map_name}", blocks.values()),
            max((block.baseAddress + block.range for block in blocks.values()), default=0),
            memory_map.description or component.description or "",
        )  # fmt: skip

    def _component(self, root: ElementTree.Element) -> Any:
        def load() -> Any:
            from ipyxact import ipyxact

            return ipyxact

        ipyxact = needs("ipyxact", "IP-XACT", load)
        space, _, tag = root.tag.removeprefix("{").rpartition("}")
        if not space.startswith(_ROOTS) or tag != "component":
            raise MapError(f"{self._name}: no IP-XACT component: its outermost element is {root.tag}")
        known = [item[1] for item in ipyxact.IpxactItem.nsmap.values()]
        if space not in known:
            versions = ", ".join(item.rpartition("/")[2] for item in known)
            raise MapError(f"{self._name}: IP-XACT {space.rpartition('/')[2]} is not read; {versions} are")
        self._number = ipyxact.IpxactInt  # 4'hA, as SystemVerilog has it
        items: list[Any] = [item for item in vars(ipyxact).values() if isinstance(item, type) and hasattr(item, "_tag")]
        self._numbers = {
            (item._tag, name) for item in items for name, kind in item.MEMBERS.items() if kind == "IpxactInt"
        }
        self._tidy(f"{{{space}}}", root, self._name)
        component = ipyxact.Component()
        try:
            component.load(io.BytesIO(ElementTree.tostring(root)))
        except Exception as exc:  # ipyxact raises what it meets: a number that is an expression, for one
            raise MapError(f"{self._name}: {' '.join(str(exc).split()) or type(exc).__name__}") from exc
        return component

    def _tidy(self, space: str, element: ElementTree.Element, where: str) -> None:
        """Take out what is no number where one must be, and what has no place without it."""
        tag = element.tag.removeprefix(space)
        for child in list(element):
            inner = child.tag.removeprefix(space)
            name = (child.findtext(f"{space}name") or "").strip()
            at = f"{where}{': ' if inner == 'memoryMap' else '.'}{name}" if name else where
            if (tag, inner) in self._numbers and child.text is not None and not self._is_number(child.text):
                self._fit.note(where, f"{inner} is {child.text.strip()!r}, which is no number; left out")
                element.remove(child)
                continue
            before = len(self._fit.notes)
            self._tidy(space, child, at)
            missing = [key for key in _PLACES.get(inner, ()) if not (child.findtext(f"{space}{key}") or "").strip()]
            if missing:
                if not any(note.startswith(f"{at}: {missing[0]} is ") for note in self._fit.notes[before:]):
                    self._fit.note(at, f"it has no {missing[0]}; left out")
                element.remove(child)

    def _is_number(self, text: str) -> bool:
        try:
            self._number(text)
        except (ValueError, IndexError):
            return False
        return True

    def _unread(self, root: ElementTree.Element, map_name: str) -> None:
        """Note what is in the memory map and ipyxact passes over."""
        space = root.tag[: root.tag.index("}") + 1]
        for found in root.iter(f"{space}memoryMap"):
            if found.findtext(f"{space}name") == map_name:
                self._unread_in(space, found, f"{self._name}: {map_name}")

    def _unread_in(self, space: str, element: ElementTree.Element, where: str) -> None:
        for child in element:
            tag = child.tag.removeprefix(space)
            name = child.findtext(f"{space}name")
            at = f"{where}.{name}" if name else where
            if tag in _UNREAD:
                self._fit.note(at, f"{tag}: {_UNREAD[tag]}")
            elif tag == "registerFile" and element.tag == child.tag:
                self._fit.note(at, "registerFile: one inside of another is not read")
            else:
                if len(child.findall(f"{space}dim")) > 1:
                    self._fit.note(at, "dim: an array has one index; of several the first is read")
                self._unread_in(space, child, at)

    def _groups(self, where: str, blocks: Any) -> Iterator[tuple[str, Entry]]:
        for block in blocks:
            at = f"{where}.{block.name}"
            members = self._members(at, block, block.access or "")
            if group := self._fit.group(at, block.name, block.baseAddress, members, block.description or ""):
                yield at, group

    def _members(self, where: str, block: Any, access: str) -> Iterator[tuple[str, Entry]]:
        for register in block.register:
            at = f"{where}.{register.name}"
            if entry := self._register(at, register, access):
                yield at, entry
        for inner in getattr(block, "registerFile", ()):
            at = f"{where}.{inner.name}"
            array = Dimension(inner.dim, inner.range) if inner.dim else None
            members = self._members(at, inner, access)
            if group := self._fit.group(at, inner.name, inner.addressOffset, members, inner.description or "", array):
                yield at, group

    def _register(self, where: str, register: Any, access: str) -> Entry | None:
        access = register.access or access or "read-write"
        whole = register.reset
        reset = whole.value & (whole.mask or -1) if whole is not None else 0
        size = register.size or 32
        if whole is not None and whole.value >> size:
            self._fit.note(where, f"reset value {whole.value:#x} does not fit in {size} bits; cut")
        fields: list[tuple[str, FieldEntry]] = []
        for field in register.field:
            at = f"{where}.{field.name}"
            width = field.bitWidth or 1
            kind = self._access(at, field.access or access, field)
            values = list(self._values(at, field))
            fields.append((
                at, self._fit.field(at, field.name, field.bitOffset, width, kind, field.description or "", values),
            ))  # fmt: skip
            start = getattr(field.resets, "reset", None)
            if start is not None:
                if start.value >> width:
                    self._fit.note(at, f"reset value {start.value:#x} does not fit in {width} bits; cut")
                reset |= (start.value & (start.mask or -1) & (1 << width) - 1) << field.bitOffset
        rest = RES0 if fields else self._access(where, access, None)
        array = Dimension(register.dim, register.size // 8) if register.dim else None
        return self._fit.register(
            where, register.name, register.addressOffset, register.size or 32, fields, reset, rest,
            register.description or "", array,
        )  # fmt: skip

    def _access(self, where: str, access: str, field: Any) -> Access:
        return access_kind(
            self._fit, where, access, getattr(field, "modifiedWriteValue", None), getattr(field, "readAction", None)
        )

    def _values(self, where: str, field: Any) -> Iterator[ValueEntry]:
        for item in getattr(field.enumeratedValues, "enumeratedValue", ()):
            try:
                value = self._number(item.value)
            except (TypeError, ValueError):
                self._fit.note(where, f"value {item.name} is {item.value!r}, which is no number; left out")
            else:
                yield ValueEntry(value, item.name or str(value), item.description or "")
