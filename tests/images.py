"""Small images of each kind for the tests of `boot`: ELF files and Multiboot headers, made by their specifications."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

MIB = 1 << 20
MULTIBOOT = 0x1BADB002
MULTIBOOT2 = 0xE85250D6


class Load(NamedTuple):
    """A PT_LOAD segment: physical address, contents, size in memory and virtual address."""

    address: int
    data: bytes
    size: int | None = None
    virtual: int | None = None


def elf(
    loads: Sequence[Load], entry: int, *, bits: int = 32, notes: bytes = b"", machine: int | None = None, **header: int
) -> bytes:
    """An ELF executable: header, program headers, then the contents one after the other.

    `header` replaces e_type, e_phoff, e_phentsize or e_phnum.
    """
    headers = [(1, load.address if load.virtual is None else load.virtual, load) for load in loads]
    if notes:
        headers.append((4, 0, Load(0, notes)))
    size, entry_size = (52, 32) if bits == 32 else (64, 56)
    at = -(-(size + entry_size * len(headers)) // 16) * 16  # where a header of either kind may stand
    table, contents = b"", b""
    for kind, virtual, load in headers:
        in_memory = len(load.data) if load.size is None else load.size
        place = (at + len(contents), virtual, load.address, len(load.data), in_memory)
        if bits == 32:
            table += struct.pack("<8I", kind, *place, 7, 4096)
        else:
            table += struct.pack("<IIQQQQQQ", kind, 7, *place, 4096)
        contents += load.data
    machine = {32: 3, 64: 62}[bits] if machine is None else machine
    head = b"\x7fELF" + bytes((1 if bits == 32 else 2, 1, 1)) + bytes(9)
    head += struct.pack(
        "<HHIIIIIHHHHHH" if bits == 32 else "<HHIQQQIHHHHHH",
        header.get("e_type", 2), machine, 1, entry, header.get("e_phoff", size), 0, 0, size,
        header.get("e_phentsize", entry_size), header.get("e_phnum", len(headers)), 0, 0, 0,
    )  # fmt: skip
    return (head + table).ljust(at, b"\0") + contents


def assembled(listing: str) -> bytes:
    """The bytes of a listing: in each line hex digits, `;`, and the assembly they are (Intel syntax)."""
    return bytes.fromhex("".join(line.split(";")[0] for line in listing.splitlines()))


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """An entry of a note segment."""
    name += b"\0"
    return b"".join((
        struct.pack("<III", len(name), len(data), kind), name, bytes(-len(name) % 4), data, bytes(-len(data) % 4),
    ))  # fmt: skip


def multiboot(flags: int = 0, *words: int) -> bytes:
    """A Multiboot 1 header; `words` are its address and video fields."""
    return struct.pack(f"<III{len(words)}I", MULTIBOOT, flags, -(MULTIBOOT + flags) & 0xFFFFFFFF, *words)


def tag(kind: int, body: bytes = b"", *, optional: bool = False, size: int | None = None) -> bytes:
    """A tag of a Multiboot 2 header, padded to 8 bytes; it says to have `size` bytes, where given."""
    content = struct.pack("<HHI", kind, optional, 8 + len(body) if size is None else size) + body
    return content + bytes(-len(content) % 8)


def multiboot2(*tags: bytes, architecture: int = 0) -> bytes:
    """A Multiboot 2 header with `tags` and an end tag."""
    body = b"".join(tags) + tag(0)
    length = 16 + len(body)
    checksum = -(MULTIBOOT2 + architecture + length) & 0xFFFFFFFF
    return struct.pack("<4I", MULTIBOOT2, architecture, length, checksum) + body
