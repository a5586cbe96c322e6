"""CMSIS-SVD in: `from_svd` makes a device class of a peripheral of a vendor's file, at run time.

Beside `systemrdl.py` and `ipxact.py`, on `fitting.py`. The file is read by `svd2py` (the extra `maps`), which
resolves derivedFrom; here its plain data becomes a `RegisterMap`. The format is that of the CMSIS-SVD specification,
https://open-cmsis-pack.github.io/svd-spec/.
"""

from __future__ import annotations

import io
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree

from iobus.registers.entries import Dimension, Entry, FieldEntry, MapError, ValueEntry
from iobus.registers.fitting import Fitter, Imported, chosen, needs, read_source
from iobus.registers.kinds import RES0, Access, OnRead, OnWrite, kind
from iobus.registers.runtime import BuiltBank, build

_ACCESS: Final = {
    "read-only": (OnRead.VALUE, OnWrite.IGNORED),
    "write-only": (OnRead.ZERO, OnWrite.STORES),
    "read-write": (OnRead.VALUE, OnWrite.STORES),
    "writeonce": (OnRead.ZERO, OnWrite.ONCE),
    "read-writeonce": (OnRead.VALUE, OnWrite.ONCE),
    "no-access": (OnRead.ZERO, OnWrite.IGNORED),
    "read": (OnRead.VALUE, OnWrite.IGNORED),  # of version 1.0
    "write": (OnRead.ZERO, OnWrite.STORES),
}
_ON_WRITE: Final = {
    "oneToClear": OnWrite.ONE_CLEARS, "oneToSet": OnWrite.ONE_SETS, "oneToToggle": OnWrite.ONE_TOGGLES,
    "zeroToClear": OnWrite.ZERO_CLEARS, "zeroToSet": OnWrite.ZERO_SETS, "zeroToToggle": OnWrite.ZERO_TOGGLES,
    "clear": OnWrite.CLEARS, "set": OnWrite.SETS, "modify": OnWrite.EFFECT,
}  # fmt: skip
_ON_READ: Final = {
    "clear": OnRead.CLEARS, "set": OnRead.SETS, "modify": OnRead.EFFECT, "modifyExternal": OnRead.EFFECT,
}  # fmt: skip
_WORDS: Final[dict[str, Container[str]]] = {"modifiedWriteValues": _ON_WRITE, "readAction": _ON_READ}
_MOST_ELEMENTS: Final = 1 << 16  # of an array: a larger one is a mistake, or memory

_NUMBERS: Final = frozenset({
    "addressUnitBits", "width", "size", "resetValue", "resetMask", "baseAddress", "offset", "addressOffset", "dim",
    "dimIncrement", "bitOffset", "bitWidth", "lsb", "msb", "value", "minimum", "maximum",
})  # fmt: skip
"""The elements whose text is a number."""
_DEVICE: Final = ": <device>"  # where a note is of the file's device, which holds for each of its peripherals

Data = dict[str, Any]


def from_svd(source: str | Path, top: str | None = None) -> type[BuiltBank]:
    """Return a class of devices with the registers of a peripheral: a base for a device, or one itself.

    `source` is the path of a CMSIS-SVD file, or its text. `top` names the peripheral; it can be left out where there is
    only one. What a device cannot have is left out, with a `MapWarning` that says what and where.

    Raises `MapError` where the file cannot be read, and where `svd2py` is not installed.
    """
    return build(read_svd(source, top).warn())


def read_svd(source: str | Path, top: str | None = None) -> Imported:
    """Return the register map and what it has not, as `from_svd` takes it. Raises `MapError`."""
    name, text = read_source(source)
    fit = Fitter()
    return _Reader(name, fit).bank(_parse(name, text, fit), top)


def parse_xml(name: str, text: bytes) -> ElementTree.Element:
    """Return the root of an XML file. Raises `MapError`, which names the line."""
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as exc:
        raise MapError(f"{name}:{exc.position[0]}: no XML: {exc}") from exc


def _parse(name: str, text: bytes, fit: Fitter) -> Data:
    def load() -> Any:
        import svd2py

        return svd2py

    svd2py = needs("svd2py", "CMSIS-SVD", load)
    root = parse_xml(name, text)
    if root.tag != "device":
        raise MapError(f"{name}: no CMSIS-SVD file: its outermost element is <{root.tag}>, not <device>")
    _tidy(name + _DEVICE, root, fit)
    _derive_values(root)
    derived = {item.findtext("name"): item.get("derivedFrom") for item in root.iter("peripheral")}
    try:
        data: Data = svd2py.SvdParser().convert(io.BytesIO(ElementTree.tostring(root)))["device"]
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError, svd2py_errors(svd2py)) as exc:
        raise MapError(f"{name}: {' '.join(str(exc).split()) or type(exc).__name__}") from exc
    for item in data.get("peripherals", {}).get("peripheral", []):
        item["derivedFrom"] = derived.get(item.get("name"))  # what svd2py has obeyed and does not tell
    return data


def _tidy(where: str, element: ElementTree.Element, fit: Fitter) -> None:
    """Bring what vendors write into what svd2py reads: numbers, and elements without a space between them."""
    if element.text is None:
        element.text = " "
    name = element.findtext("name")
    if element.tag == "peripheral":
        where = where.removesuffix(_DEVICE) + f": {(name or '').strip()}"
    elif name and element.tag != "device":
        where += f".{name.strip()}"
    for child in list(element):
        text = (child.text or "").strip()
        if child.tag in _NUMBERS and not len(child):
            number = _number(text)
            if number is not None:
                child.text = hex(number)
                continue
            if child.tag != "value" or "x" not in text.lower().removeprefix("0x"):  # else: some bits do not matter
                fit.note(where, f"{child.tag} is {text!r}, which is no number; left out")
            element.remove(child)
        else:
            _tidy(where, child, fit)


def _derive_values(root: ElementTree.Element) -> None:
    """Fill in enumeratedValues that are derived from others: of two by one name the nearest is meant, not neither."""
    paths = {root: [root]}
    for element in root.iter():
        for child in element:
            paths[child] = [*paths[element], child]
    named = [element for element in root.iter("enumeratedValues") if element.findtext("name")]
    for element in root.findall(".//enumeratedValues[@derivedFrom]"):
        *around, wanted = element.attrib["derivedFrom"].split(".")
        found = [
            other for other in named
            if (other.findtext("name") or "").strip() == wanted and other is not element
            and set(around) <= {(outer.findtext("name") or "").strip() for outer in paths[other]}
        ]  # fmt: skip
        if found:
            own = set(paths[element])
            nearest = max(found, key=lambda other: sum(outer in own for outer in paths[other]))
            here = {child.tag for child in element}
            element.extend(child for child in nearest if child.tag not in here)
            del element.attrib["derivedFrom"]


def svd2py_errors(svd2py: Any) -> type[Exception]:
    """The error of svd2py for a derivedFrom that leads nowhere."""
    error: type[Exception] = svd2py.derive.DerivedFromError
    return error


def _number(text: str) -> int | None:
    """A number in any of the forms of vendors: 10, +10, 0x1F, 0X1FUL, 0b101, #101."""
    if match := re.fullmatch(r"\+?(?:0[bB]|#)([01]+)", text):
        return int(match[1], 2)
    if match := re.fullmatch(r"\+?0[xX]([0-9a-fA-F]+)[uUlL]*", text):
        return int(match[1], 16)
    return int(text) if re.fullmatch(r"\+?[0-9]+", text) else None


class _Inherited(NamedTuple):
    """What registers and fields take from around them where they do not say it."""

    size: int = 32
    access: str = "read-write"
    reset: int = 0
    reset_mask: int = -1

    def inner(self, data: Data) -> _Inherited:
        return _Inherited(
            data.get("size", self.size), data.get("access", self.access), data.get("resetValue", self.reset),
            data.get("resetMask", self.reset_mask),
        )  # fmt: skip


class _Reader:
    """Turns svd2py's data into entries."""

    def __init__(self, name: str, fit: Fitter) -> None:
        self._name = name
        self._fit = fit
        self._renamed: list[str] = []  # where values that are written have names of their own

    def bank(self, device: Data, top: str | None) -> Imported:
        if device.get("addressUnitBits", 8) != 8:
            raise MapError(f"{self._name}: addressUnitBits is {device['addressUnitBits']}; iobus counts bytes, of 8")
        found = {item.get("name", ""): item for item in device.get("peripherals", {}).get("peripheral", [])}
        name = chosen(self._name, "peripheral", list(found), top)
        peripheral = found[name]
        where = f"{self._name}: {name}"
        matters = [f"{self._name}{_DEVICE}"]  # notes of the other peripherals do not, unless it is derived from them
        source: str | None = name
        while source in found and f"{self._name}: {source}" not in matters:
            matters.append(f"{self._name}: {source}")
            source = found[source].get("derivedFrom")
        notes = self._fit.notes
        notes[:] = [note for note in notes if note.startswith(tuple(at + end for at in matters for end in ".:"))]
        blocks = peripheral.get("addressBlock", [])
        length = max((block.get("offset", 0) + block.get("size", 0) for block in blocks), default=0)
        if "dim" in peripheral:
            self._fit.note(where, f"it is one of {peripheral['dim']} alike; this is the first")
        if (device.get("cpu") or {}).get("endian") == "big":
            self._fit.note(where, "its CPU is big-endian; attach the device with endian='big'")
        inherited = _Inherited(size=device.get("width", 32)).inner(device).inner(peripheral)
        members = list(self._members(where, peripheral.get("registers") or {}, inherited))
        if self._renamed:
            more = len(self._renamed) - 1
            others = f" and {more} other{'s' if more > 1 else ''}" if more else ""
            self._fit.note(
                f"{self._renamed[0]}{others}", "names of values for reads and for writes; the first are taken"
            )
        return self._fit.bank(where, name.replace("[%s]", "").replace("%s", ""), members, length, _doc(peripheral))

    def _members(self, where: str, data: Data, inherited: _Inherited) -> Iterator[tuple[str, Entry]]:
        for register in data.get("register", []):
            if self._lacks(f"{where}.{register.get('name', '')}", register, "addressOffset"):
                continue
            for name, offset, array in self._copies(where, register, "addressOffset"):
                at = f"{where}.{name}"
                if entry := self._register(at, name, offset, array, register, inherited.inner(register)):
                    yield at, entry
        for cluster in data.get("cluster", []):
            if self._lacks(f"{where}.{cluster.get('name', '')}", cluster, "addressOffset"):
                continue
            for name, offset, array in self._copies(where, cluster, "addressOffset"):
                at = f"{where}.{name}"
                members = self._members(at, cluster, inherited.inner(cluster))
                if group := self._fit.group(at, name, offset, members, _doc(cluster), array):
                    yield at, group

    def _lacks(self, where: str, data: Data, *keys: str) -> bool:
        """Whether an element is to be left out, for one of these is not there; says so, where a note has not yet."""
        missing = [key for key in keys if key not in data]
        if missing and not any(note.startswith(f"{where}: {key} is ") for note in self._fit.notes for key in missing):
            self._fit.note(where, f"it has no {missing[0]}; left out")
        return bool(missing)

    def _copies(self, where: str, data: Data, offset_key: str) -> Iterator[tuple[str, int, Dimension | None]]:
        """Name, offset and array of what `dim` makes of an element: an array for NAME[%s], else one each for NAME%s."""
        name, offset, count = data.get("name", ""), data.get(offset_key, 0), data.get("dim")
        if count is None:
            yield name, offset, None
            return
        if self._lacks(f"{where}.{name}", data, "dimIncrement"):
            return
        stride = data["dimIncrement"]
        if not 0 < count <= _MOST_ELEMENTS:
            self._fit.note(f"{where}.{name}", f"dim is {count}; left out")
        elif "[%s]" in name:
            yield name.replace("[%s]", ""), offset, Dimension(count, stride)
        else:
            indices = _indices(data.get("dimIndex"), count)
            if len(indices) != count:
                self._fit.note(f"{where}.{name}", f"dimIndex has {len(indices)} names for {count} elements; numbered")
                indices = _indices(None, count)
            for number, index in enumerate(indices):
                yield name.replace("%s", index) if "%s" in name else f"{name}{index}", offset + number * stride, None

    def _register(
        self, where: str, name: str, offset: int, array: Dimension | None, data: Data, inherited: _Inherited
    ) -> Entry | None:  # fmt: skip
        around = self._access(where, inherited.access, data)
        fields: list[tuple[str, FieldEntry]] = []
        for field in (data.get("fields") or {}).get("field", []):
            place = self._bits(f"{where}.{field.get('name', '')}", field)
            if place is None:
                continue
            lsb, width = place
            for field_name, shift, _ in self._field_copies(where, field):
                at = f"{where}.{field_name}"
                own = {key: data[key] for key, known in _WORDS.items() if data.get(key) in known} | field
                access = self._access(at, field.get("access", inherited.access), own)
                values = self._values(at, field)
                fields.append((
                    at, self._fit.field(at, field_name, lsb + shift, width, access, _doc(field), values)
                ))  # fmt: skip
        whole = (1 << max(inherited.size, 0)) - 1
        if data.get("resetValue", 0) > whole:  # its own: what it inherits may be of a wider one
            self._fit.note(where, f"resetValue {inherited.reset:#x} does not fit in {inherited.size} bits; cut")
        reset = inherited.reset & inherited.reset_mask & whole
        rest = RES0 if fields else around
        doc = _doc(data) or data.get("displayName", "")
        return self._fit.register(where, name, offset, inherited.size, fields, reset, rest, doc, array)

    def _field_copies(self, where: str, field: Data) -> Iterator[tuple[str, int, Dimension | None]]:
        """A field's copies, each by its own name: fields have no arrays."""
        plain = {**field, "name": field.get("name", "").replace("[%s]", "%s")}
        return self._copies(where, plain, "no offset of its own")

    def _bits(self, where: str, field: Data) -> tuple[int, int] | None:
        """Lowest bit and width, in any of the three ways to say them; None for a field that is left out."""
        if "bitRange" in field:
            match = re.fullmatch(r"\[(\d+):(\d+)\]", field["bitRange"].strip())
            if match is None:
                self._fit.note(where, f"bitRange {field['bitRange']!r} is not of the form [msb:lsb]; left out")
                return None
            msb, lsb = int(match[1]), int(match[2])
            return lsb, msb - lsb + 1
        if "lsb" in field or "msb" in field:
            return None if self._lacks(where, field, "lsb", "msb") else (field["lsb"], field["msb"] - field["lsb"] + 1)
        return None if self._lacks(where, field, "bitOffset") else (field["bitOffset"], field.get("bitWidth", 1))

    def _access(self, where: str, access: str, data: Data) -> Access:
        found = access_kind(self._fit, where, access, data.get("modifiedWriteValues"), data.get("readAction"))
        limits = (data.get("writeConstraint") or {}).get("range")
        if found.writable and limits:
            low, high = limits.get("minimum"), limits.get("maximum")
            self._fit.note(where, f"writes are not held to {low} to {high}: check them in an on_write hook")
        return found

    def _values(self, where: str, field: Data) -> list[ValueEntry]:
        sets = field.get("enumeratedValues") or []
        values: list[ValueEntry] = []
        for item in sets if isinstance(sets, list) else [sets]:
            named = item.get("enumeratedValue", [])
            if values and named:
                self._renamed.append(where)
                break
            for value in named:
                if "value" in value:  # the default of all others has none
                    values.append(ValueEntry(value["value"], value.get("name", str(value["value"])), _doc(value)))
        return values


def access_kind(fit: Fitter, where: str, access: str, modified: str | None, action: str | None) -> Access:
    """The kind of these words, which CMSIS-SVD and IP-XACT share: access, modifiedWriteValue(s), readAction."""
    access = access.strip().lower()
    if access not in _ACCESS:
        fit.note(where, f"access {access!r} is none of {', '.join(_ACCESS)}; taken for read-write")
    for what, word, known in (("modifiedWriteValue", modified, _ON_WRITE), ("readAction", action, _ON_READ)):
        if word and word not in known:
            fit.note(where, f"{what} {word!r} is none of {', '.join(known)}; left out")
    read, write = _ACCESS.get(access, (OnRead.VALUE, OnWrite.STORES))
    if modified in _ON_WRITE and write is OnWrite.STORES:
        write = _ON_WRITE[modified]
    if action in _ON_READ and read is OnRead.VALUE:
        read = _ON_READ[action]
    return kind(read, write)


def _indices(given: str | None, count: int) -> list[str]:
    """The names that dimIndex gives: `A,B,C`, `0-3`, `A-D`; without it numbers."""
    if given is None:
        return [str(number) for number in range(count)]
    given = given.strip()
    if match := re.fullmatch(r"(\d+)-(\d+)", given):
        return [str(number) for number in range(int(match[1]), min(int(match[2]) + 1, int(match[1]) + _MOST_ELEMENTS))]
    if match := re.fullmatch(r"([A-Za-z])-([A-Za-z])", given):
        return [chr(letter) for letter in range(ord(match[1]), ord(match[2]) + 1)]
    return [name.strip() for name in given.split(",")]


def _doc(data: Data) -> str:
    return str(data.get("description") or "")
