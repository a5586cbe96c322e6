"""SystemRDL 2.0 in: `from_systemrdl` makes a device class of a register description, at run time.

Beside `svd.py` and `ipxact.py`, on `fitting.py`. The files are read by `systemrdl-compiler` (the extra
`maps`); here its elaborated tree becomes a `RegisterMap`. What software sees is taken over: sw, onread, onwrite,
singlepulse, reset, encode, arrays, regfiles, addrmaps. What hardware does (hw, counter, intr, we, ...) is what one
writes in Python. `systemrdl_export.py` is the way back.
"""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from iobus.registers.entries import Dimension, Entry, FieldEntry, MapError, Unmapped, ValueEntry
from iobus.registers.fitting import TEXT, Fitter, Imported, needs, source_text
from iobus.registers.kinds import RES0, Access, OnRead, OnWrite, kind
from iobus.registers.runtime import BuiltBank, build

if TYPE_CHECKING:
    from systemrdl.compiler import RDLCompiler
    from systemrdl.node import AddressableNode, AddrmapNode, FieldNode, Node, RegfileNode, RegNode

# Properties of our own that an exported file declares, for what SystemRDL has no words for.
ACCESS: Final = "iobus_access"
"""Of a field: its kind, as ON_READ/ON_WRITE."""
REST: Final = "iobus_rest"
"""Of a field: that it stands for bits that no field has."""
LENGTH: Final = "iobus_length"
"""Of the top: how many bytes the device claims."""
UNMAPPED: Final = "iobus_unmapped"
"""Of the top: what bytes of no register do."""

_ON_READ: Final = {"rclr": OnRead.CLEARS, "rset": OnRead.SETS, "ruser": OnRead.EFFECT}
_ON_WRITE: Final = {
    "woset": OnWrite.ONE_SETS, "woclr": OnWrite.ONE_CLEARS, "wot": OnWrite.ONE_TOGGLES,
    "wzs": OnWrite.ZERO_SETS, "wzc": OnWrite.ZERO_CLEARS, "wzt": OnWrite.ZERO_TOGGLES,
    "wclr": OnWrite.CLEARS, "wset": OnWrite.SETS, "wuser": OnWrite.EFFECT,
}  # fmt: skip


_GROUPS: Final = ("addrmap", "regfile")


def from_systemrdl(source: str | Path, top: str | None = None) -> type[BuiltBank]:
    """Return a class of devices with the registers of a SystemRDL file or text: a base for a device, or one itself.

    `source` is a path, or the text itself, which a `str` with a bracket or a line end is taken for. A file's includes
    are beside it, a text's in the current directory; a description in several files is one that includes them.

    `top` names the addrmap, by default the last one; a name with dots leads on to an addrmap or regfile inside of it,
    as in `"soc.uart0"`. What a device cannot have is left out, with a `MapWarning` that says what and where.

    Raises `MapError` where the file cannot be read or compiled, and where `systemrdl-compiler` is not installed.
    """
    return build(read_systemrdl(source, top).warn())


def read_systemrdl(source: str | Path, top: str | None = None) -> Imported:
    """Return the register map and what it has not, as `from_systemrdl` takes it. Raises `MapError`."""
    name, text = source_text(source)
    if text is None:
        return _read(name, Path(source), top)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "text.rdl")
        path.write_bytes(text)
        return _read(name, path, top)


def _read(name: str, path: Path, top: str | None) -> Imported:
    return _Reader(name).bank(_compile(name, path, top))


class _Errors:
    """Stands for the compiler's message printer: keeps the first error, as a line that begins with its place."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.first = ""

    def print_message(self, severity: Enum, text: str, src_ref: object) -> None:
        if severity.name in ("ERROR", "FATAL") and not self.first:
            self.first = f"{_place(self._name, src_ref)}: {' '.join(text.split())}"


def _compile(name: str, path: Path, top: str | None) -> AddrmapNode | RegfileNode:
    def load() -> tuple[type[RDLCompiler], type[Exception]]:
        from systemrdl.compiler import RDLCompiler
        from systemrdl.messages import RDLCompileError

        return RDLCompiler, RDLCompileError

    compiler_type, compile_error = needs("systemrdl-compiler", "SystemRDL", load)
    errors = _Errors(name)
    names = top.split(".") if top else []
    try:
        compiler = compiler_type(message_printer=errors)
        compiler.compile_file(str(path), incl_search_paths=["."] if name == TEXT else [])
        root = compiler.elaborate(names[0] if names else None)
    except compile_error as exc:
        raise MapError(errors.first or f"{name}: {exc}") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise MapError(f"{name} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    node: Any = root.top
    for at, inner in enumerate(names[1:], 1):
        groups = {child.inst_name: child for child in node.children() if child.component_type_name in _GROUPS}
        if inner not in groups:
            inside = ", ".join(groups) or "none"
            raise MapError(f"{name}: {'.'.join(names[:at])} has no addrmap or regfile {inner!r}; it has {inside}")
        node = groups[inner]
    if node.component_type_name == "addrmap" and node.get_property("bridge"):
        views = ", ".join(f"{node.inst_name}.{child.inst_name}" for child in node.children())
        raise MapError(f"{name}: {node.inst_name} is a bridge; say which of its views is meant with top=: {views}")
    return node  # type: ignore[no-any-return]


def _place(name: str, src_ref: Any) -> str:
    """The file and line of a reference; text that came without a file has our name for it."""
    line = getattr(src_ref, "line", None)
    path = getattr(src_ref, "path", None)
    if path is None or (Path(path).name == "text.rdl" and name == TEXT):
        path = name
    return f"{path}:{line}" if line else str(path)


class _Reader:
    """Turns nodes into entries."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._fit = Fitter()

    def bank(self, node: AddrmapNode | RegfileNode) -> Imported:
        addrmap = node.component_type_name == "addrmap"
        length, unmapped = (node.get_property(name, default=None) if addrmap else None for name in (LENGTH, UNMAPPED))
        length = length if isinstance(length, int) else 0
        if addrmap and node.get_property("bigendian"):
            self._fit.note(self._where(node), "it is big-endian; attach the device with endian='big'")
        known: tuple[Unmapped, ...] = ("zero", "ones", "decline")
        return self._fit.bank(
            self._where(node), node.inst_name, self._members(node), length, _doc(node),
            next((item for item in known if item == unmapped), "zero"),
        )  # fmt: skip

    def _where(self, node: Node) -> str:
        path = node.get_path(array_suffix="", empty_array_suffix="")
        return f"{_place(self._name, node.inst_src_ref or node.def_src_ref)}: {path}"

    def _members(self, node: Node) -> list[tuple[str, Entry]]:
        found: list[tuple[str, Entry]] = []
        for child in node.children():
            kind_of_child = child.component_type_name
            entry: Entry | None = None
            if kind_of_child == "reg":
                entry = self._register(child)  # type: ignore[arg-type]
            elif kind_of_child in _GROUPS:
                entry = self._group(child)  # type: ignore[arg-type]
            elif kind_of_child == "mem":
                self._fit.note(self._where(child), "it is a memory, which is no register; left out")
            if entry is not None:
                found.append((self._where(child), entry))
        return found

    def _group(self, node: AddrmapNode | RegfileNode) -> Entry | None:
        where = self._where(node)
        members = self._members(node)
        return self._fit.group(where, node.inst_name, _offset(node), members, _doc(node), self._array(where, node))

    def _array(self, where: str, node: AddressableNode) -> Dimension | None:
        if node.array_dimensions is None or node.array_stride is None:
            return None
        if len(node.array_dimensions) > 1:
            shape = "".join(f"[{count}]" for count in node.array_dimensions)
            self._fit.note(where, f"the array {shape} has one index here, from 0 to {node.n_elements - 1}")
        return Dimension(node.n_elements, node.array_stride)

    def _register(self, node: RegNode) -> Entry | None:
        where = self._where(node)
        width = node.get_property("regwidth")
        fields: list[tuple[str, FieldEntry]] = []
        reset, rest = 0, RES0
        for child in node.fields():
            lsb = width - 1 - child.high if node.is_msb0_order else child.low
            access = self._access(child)
            reset |= self._reset(child) << lsb
            if child.get_property(REST, default=False):
                rest = access
                continue
            values = [
                ValueEntry(item.value, item.name, item.rdl_desc or item.rdl_name or "")
                for item in child.get_property("encode") or ()
            ]
            at = self._where(child)
            fields.append((
                at, self._fit.field(at, child.inst_name, lsb, child.width, access, _doc(child), values),
            ))  # fmt: skip
        if node.is_alias:
            self._fit.note(where, f"it is an alias of {node.alias_primary.inst_name}, and has its own value here")
        return self._fit.register(
            where, node.inst_name, _offset(node), width, fields, reset, rest, _doc(node), self._array(where, node)
        )

    def _access(self, node: FieldNode) -> Access:
        where = self._where(node)
        if given := node.get_property(ACCESS, default=None):
            try:
                on_read, on_write = str(given).split("/")
                return kind(OnRead[on_read], OnWrite[on_write])
            except (ValueError, KeyError):
                self._fit.note(where, f"{ACCESS} {given!r} is no access kind")
        sw, onread, onwrite = node.get_property("sw").name, node.get_property("onread"), node.get_property("onwrite")
        for name in ("swwe", "swwel"):
            if node.get_property(name):
                self._fit.note(where, f"{name} is not looked at: undo the write in an on_write hook")
        if node.get_property("singlepulse"):
            return kind(OnRead.ZERO, OnWrite.CLEARS)
        read = OnRead.VALUE if "r" in sw else OnRead.ZERO
        write = OnWrite.STORES if "w" in sw else OnWrite.IGNORED
        if read is OnRead.VALUE and onread is not None:
            read = _ON_READ[onread.name]
        if onwrite is not None and write is OnWrite.STORES:
            write = _ON_WRITE[onwrite.name]
            if sw.endswith("1"):
                self._fit.note(where, f"sw={sw} with onwrite={onwrite.name} acts on every write, not the first only")
        elif sw.endswith("1"):
            write = OnWrite.ONCE
        return kind(read, write)

    def _reset(self, node: FieldNode) -> int:
        value = node.get_property("reset")
        if value is None or isinstance(value, int):
            return (value or 0) & (1 << node.width) - 1
        self._fit.note(self._where(node), "its reset value is that of a signal or another field; 0 here")
        return 0


def _offset(node: AddressableNode) -> int:
    return node.raw_address_offset


def _doc(node: Node) -> str:
    """The node's name, where it has one of its own, and its description."""
    desc = node.get_property("desc") or ""
    given = node.list_properties()
    name = node.get_property("name") if "name" in given else ""
    if not desc or not name:
        return desc or name
    return f"{name.rstrip('.')}. {desc}"
