"""ACPI Machine Language: functions that encode the terms a DSDT is made of. Used by `acpi.py`.

Every function returns the bytes of one term, so terms nest as calls do:
`device("COM1", name("_HID", eisa_id("PNP0501")))`. The encoding is chapter 20 of the ACPI
specification 6.5, the resource descriptors its section 6.4. What cannot be encoded raises
`ValueError`. Imports nothing of iobus.
"""

from __future__ import annotations

import re
import struct
from typing import Final

# Encoding values: section 20.3, "AML Byte Stream Byte Values".
_ZERO_OP: Final = b"\x00"
_ONE_OP: Final = b"\x01"
_NAME_OP: Final = b"\x08"
_BYTE_PREFIX: Final = b"\x0a"
_WORD_PREFIX: Final = b"\x0b"
_DWORD_PREFIX: Final = b"\x0c"
_STRING_PREFIX: Final = b"\x0d"
_QWORD_PREFIX: Final = b"\x0e"
_SCOPE_OP: Final = b"\x10"
_BUFFER_OP: Final = b"\x11"
_PACKAGE_OP: Final = b"\x12"
_DUAL_NAME_PREFIX: Final = b"\x2e"
_MULTI_NAME_PREFIX: Final = b"\x2f"
_METHOD_OP: Final = b"\x14"
_LOAD_OP: Final = b"\x5b\x20"
_OP_REGION_OP: Final = b"\x5b\x80"
_DEVICE_OP: Final = b"\x5b\x82"
_LOCAL0_OP: Final = b"\x60"
_ONES_OP: Final = b"\xff"

_NAME_SEG: Final = re.compile(r"[A-Z_][A-Z0-9_]{3}", re.ASCII)
_EISA_ID: Final = re.compile(r"[A-Z]{3}[0-9A-F]{4}", re.ASCII)
_ACPI_ID: Final = re.compile(r"[A-Z0-9]{4}[0-9A-F]{4}", re.ASCII)


def name_string(path: str) -> bytes:
    r"""A NameString (20.2.2): segments of four characters joined by dots, after an optional `\` or `^`s."""
    names = path.lstrip("\\") if path.startswith("\\") else path.lstrip("^")
    prefix = path[: len(path) - len(names)]
    if len(prefix) > 1 and prefix[0] == "\\":
        raise ValueError(f"ACPI name {path!r}: the root '\\' stands once, at the start")
    segments = names.split(".") if names else []
    for segment in segments:
        if not _NAME_SEG.fullmatch(segment):
            raise ValueError(
                f"ACPI name {path!r}: {segment!r} is not four characters of A-Z, 0-9 and _ that start with no digit"
            )
    if len(segments) > 255:
        raise ValueError(f"ACPI name of {len(segments)} segments: at most 255 can be encoded")
    match len(segments):
        case 0:
            count = _ZERO_OP  # NullName: the prefix alone
        case 1:
            count = b""
        case 2:
            count = _DUAL_NAME_PREFIX
        case _:
            count = _MULTI_NAME_PREFIX + bytes([len(segments)])
    return prefix.encode() + count + "".join(segments).encode()


def integer(value: int) -> bytes:
    """An integer of up to 64 bits, in its shortest form (20.2.3)."""
    _must_fit("integer", value, 64)
    if value == 0:
        return _ZERO_OP
    if value == 1:
        return _ONE_OP
    if value == (1 << 64) - 1:
        return _ONES_OP
    if value < 1 << 8:
        return _BYTE_PREFIX + value.to_bytes(1, "little")
    if value < 1 << 16:
        return _WORD_PREFIX + value.to_bytes(2, "little")
    if value < 1 << 32:
        return _DWORD_PREFIX + value.to_bytes(4, "little")
    return _QWORD_PREFIX + value.to_bytes(8, "little")


def string(text: str) -> bytes:
    """A string of ASCII characters (20.2.3)."""
    if not text.isascii() or "\0" in text:
        raise ValueError(f"AML string {text!r}: only the characters 0x01-0x7F can be encoded")
    return _STRING_PREFIX + text.encode() + b"\0"


def buffer(data: bytes) -> bytes:
    """A Buffer that holds `data` (20.2.5.4)."""
    return _BUFFER_OP + _packaged(integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """A Package of data terms (20.2.5.4)."""
    if len(elements) > 255:
        raise ValueError(f"Package of {len(elements)} elements: at most 255 can be encoded")
    return _PACKAGE_OP + _packaged(bytes([len(elements)]) + b"".join(elements))


def name(path: str, value: bytes) -> bytes:
    """Name (path, value): a named object with a constant value (20.2.5.1)."""
    return _NAME_OP + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path): `terms` in the namespace of an object that exists (20.2.5.1)."""
    return _SCOPE_OP + _packaged(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) with what it holds (20.2.5.2)."""
    return _DEVICE_OP + _packaged(name_string(path) + b"".join(terms))


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    """Method (path, arguments): `terms` to be executed, with 0-7 arguments, not serialised (20.2.5.2)."""
    if not 0 <= arguments <= 7:
        raise ValueError(f"method {path!r} of {arguments} arguments: 0-7 can be")
    return _METHOD_OP + _packaged(name_string(path) + bytes([arguments]) + b"".join(terms))


def memory_region(path: str, base: int, length: int) -> bytes:
    """OperationRegion (path, SystemMemory, base, length) (20.2.5.2)."""
    return _OP_REGION_OP + name_string(path) + b"\x00" + integer(base) + integer(length)


def load(path: str) -> bytes:
    """Load (path, Local0): have the table become a part of the namespace that lies in a memory region (20.2.5.3)."""
    return _LOAD_OP + name_string(path) + _LOCAL0_OP


def eisa_id(text: str) -> bytes:
    """EisaId ("PNP0501"): three letters in 5 bits each and four hexadecimal digits, bytes swapped (19.3.4)."""
    if not _EISA_ID.fullmatch(text):
        raise ValueError(f"EISA ID {text!r} is not three letters A-Z and four hexadecimal digits 0-9, A-F")
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    packed = (letters << 16 | int(text[3:], 16)).to_bytes(4, "big")
    return integer(int.from_bytes(packed, "little"))


def hardware_id(text: str) -> bytes:
    """The value of a _HID (6.1.5): an EISA ID packed into an integer, an ACPI ID ("ACPI0007") as a string."""
    if _EISA_ID.fullmatch(text):
        return eisa_id(text)
    if not _ACPI_ID.fullmatch(text):
        raise ValueError(
            f"hardware ID {text!r} is neither a PNP ID (three letters A-Z) nor an ACPI ID (four of A-Z, 0-9), "
            "followed by four hexadecimal digits 0-9, A-F"
        )
    return string(text)


def resource_template(*descriptors: bytes) -> bytes:
    """A Buffer of resource descriptors, closed by an end tag (6.4.2.9) with the checksum 0: "not checked"."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(base: int, length: int) -> bytes:
    """An IO port descriptor (6.4.2.5): `length` ports, 1-255, from exactly `base`, decoded on 16 bits."""
    if not (1 <= length <= 255 and 0 <= base <= 0x10000 - length):
        raise ValueError(f"{length} I/O ports from {base:#x}: a descriptor holds 1-255 ports below 0x10000")
    return struct.pack("<BBHHBB", 0x47, 0x01, base, base, 1, length)


def irq_no_flags(*lines: int) -> bytes:
    """An IRQ descriptor without flags (6.4.2.1): ISA lines 0-15, edge-triggered, active high, not shared."""
    mask = 0
    for line in lines:
        if not 0 <= line <= 15:
            raise ValueError(f"ISA interrupt line {line}: a descriptor holds 0-15; use interrupt() for a higher GSI")
        mask |= 1 << line
    return struct.pack("<BH", 0x22, mask)


def interrupt(*gsis: int, level: bool = False, active_low: bool = False, shared: bool = False) -> bytes:
    """An extended interrupt descriptor (6.4.3.6) of global system interrupts that the device consumes."""
    if not 1 <= len(gsis) <= 255:
        raise ValueError(f"{len(gsis)} interrupts: an extended interrupt descriptor holds 1-255")
    for gsi in gsis:
        _must_fit("global system interrupt", gsi, 32)
    flags = 1 | (not level) << 1 | active_low << 2 | shared << 3
    return struct.pack(f"<BHBB{len(gsis)}I", 0x89, 2 + 4 * len(gsis), flags, len(gsis), *gsis)


def memory32_fixed(base: int, length: int) -> bytes:
    """A 32-bit fixed memory range descriptor (6.4.3.4): `length` bytes of read-write memory at `base`."""
    if not (length > 0 and 0 <= base <= (1 << 32) - length):
        raise ValueError(f"memory of {length:#x} bytes at {base:#x} is empty or not all below 4 GiB")
    return struct.pack("<BHBII", 0x86, 9, 1, base, length)


def _packaged(body: bytes) -> bytes:
    """`body` after its PkgLength (20.2.4), which counts itself in."""
    if len(body) + 1 < 1 << 6:
        return bytes([len(body) + 1]) + body
    for following in (1, 2, 3):
        length = 1 + following + len(body)
        if length < 1 << (4 + 8 * following):
            return bytes([following << 6 | length & 0xF]) + (length >> 4).to_bytes(following, "little") + body
    raise ValueError(f"AML term of {len(body)} bytes: its length does not fit in 28 bits")


def _must_fit(what: str, value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{what} {value:#x} does not fit in {bits} unsigned bits")
