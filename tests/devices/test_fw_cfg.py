"""devices/fw_cfg.py against QEMU's docs/specs/fw_cfg.rst, without a CPU."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.bus import Bus
from iobus.devices.fw_cfg import FwCfg
from iobus.memory import Memory
from iobus.state import StateError

PORT = 0x510
ITEMS = {5: b"\x04\x00", 0x8000: b"local"}
FILES = {"etc/b": b"second", "etc/a": b"first file", "x" * 55: b""}
DMA_AT, BUFFER = 0x1000, 0x2000


class Rig:
    """The device on a port bus, with 64 KiB of RAM and one page of ROM-less nothing above it."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.memory.add(0, 0x10000)
        self.device = FwCfg(self.memory, ITEMS, FILES)
        self.bus = Bus(0x10000)
        self.bus.attach(self.device, PORT)

    def select(self, key: int) -> None:
        self.bus.write(PORT, 2, key)

    def take(self, count: int) -> bytes:
        return bytes(self.bus.read(PORT + 1, 1) for _ in range(count))

    def item(self, key: int, count: int) -> bytes:
        self.select(key)
        return self.take(count)

    def dma(self, control: int, length: int, address: int, at: int = DMA_AT) -> int:
        """Have a transfer done; return the control word it leaves."""
        self.memory.write(at, struct.pack(">IIQ", control, length, address))
        self.bus.write(PORT + 4, 4, int.from_bytes(struct.pack(">I", at >> 32), "little"))
        self.bus.write(PORT + 8, 4, int.from_bytes(struct.pack(">I", at & 0xFFFFFFFF), "little"))
        return int.from_bytes(self.memory.read(at, 4), "big")


def test_the_signature_and_the_features() -> None:
    """Key 0 is "QEMU"; key 1 has bit 0 (traditional interface) and bit 1 (DMA)."""
    rig = Rig()
    assert rig.item(0, 4) == b"QEMU"
    assert rig.item(1, 4) == b"\x03\x00\x00\x00"


def test_an_item_is_read_byte_by_byte_and_then_as_zeros() -> None:
    """ "Reading past the end gives zeros"; selecting starts from the first byte again; an unknown key has no data."""
    rig = Rig()
    assert rig.item(0x8000, 8) == b"local\0\0\0"
    assert rig.item(0x8000, 2) + rig.take(3) == b"local"
    assert rig.item(0x7FFF, 4) == bytes(4)


def test_the_file_directory_is_sorted_and_big_endian() -> None:
    """FWCfgFiles: count, then size, select, reserved and a name of 56 bytes each; its keys give the files."""
    rig = Rig()
    assert rig.item(0x19, 4) == struct.pack(">I", 3)
    names = []
    for _ in FILES:
        size, key, reserved, name = struct.unpack(">IHH56s", rig.take(64))
        names.append(name.rstrip(b"\0").decode())
        assert reserved == 0 and key >= 0x20 and size == len(FILES[names[-1]])
    assert names == sorted(FILES)
    assert rig.item(0x20, 10) == b"first file" and rig.item(0x21, 6) == b"second"


def test_a_name_that_does_not_fit_is_refused() -> None:
    """A name has 55 characters and a NUL."""
    for name in ("x" * 56, "", "ä"):
        with pytest.raises(ValueError, match="1 to 55 ASCII characters"):
            FwCfg(Memory(), {}, {name: b""})


def test_the_dma_register_reads_as_the_signature() -> None:
    """Big-endian "QEMU CFG": its first byte is at the lowest port."""
    rig = Rig()
    assert rig.bus.read(PORT + 4, 4) == int.from_bytes(b"QEMU", "little")
    assert rig.bus.read(PORT + 8, 4) == int.from_bytes(b" CFG", "little")
    assert rig.bus.read(PORT + 9, 1) == ord("C")


def test_dma_selects_reads_and_skips() -> None:
    """Each bit of the control word; it is 0 when the transfer is done, and the offset goes on."""
    rig = Rig()
    assert rig.dma(0x20 << 16 | 8 | 2, 5, BUFFER) == 0
    assert rig.memory.read(BUFFER, 6) == b"first\0"
    assert rig.dma(4, 1, 0) == 0  # skip the blank
    rig.memory.write(BUFFER, b"\xff" * 8)
    assert rig.dma(2, 6, BUFFER) == 0
    assert rig.memory.read(BUFFER, 8) == b"file\0\0\xff\xff"
    assert rig.dma(0x21 << 16 | 8, 0, 0) == 0
    assert rig.take(6) == b"second"


def test_dma_starts_with_the_lower_half_and_clears_the_register() -> None:
    """A transfer uses the upper half written before it, once."""
    rig = Rig()
    rig.memory.write(DMA_AT, struct.pack(">IIQ", 0x20 << 16 | 8 | 2, 5, BUFFER))
    rig.bus.write(PORT + 4, 4, 1)  # an address above all RAM: nothing can be done, nor said
    rig.bus.write(PORT + 8, 4, int.from_bytes(struct.pack(">I", DMA_AT), "little"))
    assert rig.memory.read(BUFFER, 5) == bytes(5)
    assert rig.memory.read(DMA_AT, 4) != bytes(4)
    rig.bus.write(PORT + 8, 4, int.from_bytes(struct.pack(">I", DMA_AT), "little"))
    assert rig.memory.read(BUFFER, 5) == b"first"


@pytest.mark.parametrize(("length", "address"), [(1, 0x10000), (0x8001, 0x8000), (0xFFFFFFFF, 0x8000), (1, 1 << 63)])
def test_dma_that_is_not_all_to_ram_is_an_error(length: int, address: int) -> None:
    """The error bit is set, nothing is written and nothing of the item is taken."""
    rig = Rig()
    rig.select(0x20)
    assert rig.dma(2, length, address) == 1
    assert rig.memory.read(0x8000, 0x8000) == bytes(0x8000)
    assert rig.take(5) == b"first"


def test_dma_may_be_as_large_as_ram() -> None:
    """What is beyond the item is zeros."""
    rig = Rig()
    rig.memory.write(0x4000, b"\xff" * 0xC000)
    assert rig.dma(0x21 << 16 | 8 | 2, 0xC000, 0x4000) == 0
    assert rig.memory.read(0x4000, 0xC000) == b"second".ljust(0xC000, b"\0")


def test_items_cannot_be_written() -> None:
    """By DMA an error; by the data port nothing happens, as since QEMU 2.4."""
    rig = Rig()
    assert rig.dma(0x20 << 16 | 8 | 16, 5, BUFFER) == 1
    rig.select(0x4020)
    rig.bus.write(PORT + 1, 1, 0xFF)
    assert rig.item(0x20, 5) == b"first"


def test_reset_selects_the_signature() -> None:
    """As at power-on."""
    rig = Rig()
    rig.select(0x8000)
    rig.device.reset()
    assert rig.take(4) == b"QEMU"


STEP = st.tuples(
    st.integers(0, 11),
    st.sampled_from((1, 2, 4)),
    st.none() | st.integers(0, 2**32 - 1) | st.sampled_from((0x20, 0x19, 0x00100000, 0xFFFFFFFF)),
)


@settings(max_examples=150)
@given(
    st.lists(STEP, max_size=30),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from((0, 5, 0xFFFFFFFF)) | st.integers(0, 0x20000),
    st.integers(0, 0x11000) | st.integers(0, 2**64 - 1),
)
def test_any_guest(steps: list[tuple[int, int, int | None]], control: int, length: int, address: int) -> None:
    """No sequence of accesses, with any access structure in RAM, raises; the state survives save and restore."""
    rig = Rig()
    rig.memory.write(DMA_AT, struct.pack(">IIQ", control, length, address))
    for offset, size, value in steps:
        if value is None:
            answer = rig.bus.read(PORT + offset, size)
            assert answer is NotImplemented or 0 <= answer < 1 << 8 * size
        else:
            rig.bus.write(PORT + offset, size, value & (1 << 8 * size) - 1)
    saved = rig.device.save()
    with pytest.raises(StateError, match=r"FwCfgState\.offset: got -0x1"):
        rig.device.restore({**saved, "offset": -1})
    other = Rig()
    other.device.restore(saved)
    assert other.device.save() == saved
    assert other.take(3) == rig.take(3)
