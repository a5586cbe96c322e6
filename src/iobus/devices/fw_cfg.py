"""fw_cfg: items of configuration that firmware and bare-metal guests ask for by number or by file name.

Stands among the devices; knows its ports, the guest's memory, and the items it was made with. By QEMU's
docs/specs/fw_cfg.rst, which is the interface's definition: a selector, a data port that gives an item byte by byte,
and a DMA interface that copies one at once. What the items are is `pc/host_interface.py`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from iobus.bus import Device, Value
from iobus.memory import Memory, MemoryRangeError
from iobus.state import U16, U64, State, Stateful

# Keys of items that every guest may ask for.
SIGNATURE: Final = 0x00
ID: Final = 0x01
UUID: Final = 0x02
RAM_SIZE: Final = 0x03
NOGRAPHIC: Final = 0x04
NB_CPUS: Final = 0x05
NUMA: Final = 0x0D
BOOT_MENU: Final = 0x0E
MAX_CPUS: Final = 0x0F
KERNEL_DATA: Final = 0x11
FILE_DIR: Final = 0x19
FILE_FIRST: Final = 0x20
# Items of x86.
ACPI_TABLES: Final = 0x8000
SMBIOS_ENTRIES: Final = 0x8001
IRQ0_OVERRIDE: Final = 0x8002

SELECTOR: Final = 0
"""The 16-bit selector, as an offset from the first port."""
DATA: Final = 1
DMA: Final = 4
"""The 64-bit DMA address register, big-endian: writing its lower half starts a transfer."""

# Bits of the DMA control word.
DMA_ERROR: Final = 1 << 0
DMA_READ: Final = 1 << 1
DMA_SKIP: Final = 1 << 2
DMA_SELECT: Final = 1 << 3
DMA_WRITE: Final = 1 << 4

_SIGNATURE: Final = b"QEMU"
_FEATURES: Final = 3
"""The value of `ID`: the traditional interface and DMA."""
_DMA_SIGNATURE: Final = b"QEMU CFG"
_DMA_ACCESS: Final = struct.Struct(">IIQ")
"""FWCfgDmaAccess: control, length, address."""
_FILE: Final = struct.Struct(">IHxx56s")
"""FWCfgFile: size, select, reserved, name."""
_NAME_LENGTH: Final = 55
_MASK64: Final = (1 << 64) - 1


@dataclass
class FwCfgState(State):
    """What is selected, how much of it was read, and the address register."""

    selected: U16 = 0
    offset: U64 = 0
    """Bytes of the item already read or skipped; may be beyond its end."""
    dma_address: U64 = 0


class FwCfg(Stateful, Device):
    """12 ports: selector (2 bytes), data (1 byte, at the selector's second port), DMA address at 4 (8 bytes).

    `items` are by key, `files` by name (up to 55 ASCII characters). They are read-only. What is beyond an item's end,
    and an item that is not there, reads as zeros. A DMA transfer reaches RAM only, and sets the error bit elsewhere.
    """

    name = "fw-cfg"
    length: Final = 12
    state: FwCfgState

    def __init__(self, memory: Memory, items: Mapping[int, bytes], files: Mapping[str, bytes]) -> None:
        self._memory = memory
        self._items = {SIGNATURE: _SIGNATURE, ID: _FEATURES.to_bytes(4, "little"), **items}
        directory = struct.pack(">I", len(files))
        for key, name in enumerate(sorted(files), FILE_FIRST):
            if not name.isascii() or not 0 < len(name) <= _NAME_LENGTH:
                raise ValueError(f"fw_cfg file {name!r}: a name has 1 to {_NAME_LENGTH} ASCII characters")
            self._items[key] = files[name]
            directory += _FILE.pack(len(files[name]), key, name.encode())
        self._items[FILE_DIR] = directory
        self.state = FwCfgState()

    def reset(self) -> None:
        self.state = FwCfgState()

    def read(self, offset: int, size: int) -> Value:
        if offset >= DMA:
            return int.from_bytes(_DMA_SIGNATURE[offset - DMA :][:size], "little")
        if (offset, size) != (DATA, 1):
            return NotImplemented  # type: ignore[no-any-return]
        data = self._take(1)
        return data[0] if data else 0

    def write(self, offset: int, size: int, value: int) -> object:
        if offset >= DMA:
            return self._write_address(offset - DMA, size, value)
        if (offset, size) == (SELECTOR, 2):
            self._select(value)
            return None
        # The data port was writable once, and no longer is: a byte is dropped.
        return None if size == 1 else NotImplemented

    def _select(self, key: int) -> None:
        self.state.selected, self.state.offset = key, 0

    def _take(self, length: int) -> bytes:
        """The next bytes of the selected item, up to its end; all `length` are passed over."""
        state = self.state
        data = self._items.get(state.selected, b"")[state.offset : state.offset + length]
        state.offset = min(state.offset + length, _MASK64)
        return data

    def _write_address(self, at: int, size: int, value: int) -> object:
        """A half of the address register, or (in MMIO only) all of it; the lower half starts the transfer."""
        if (at, size) not in ((0, 4), (4, 4), (0, 8)):
            return NotImplemented
        given = value.to_bytes(size, "little")  # the register is big-endian
        register = self.state.dma_address.to_bytes(8, "big")
        register = register[:at] + given + register[at + size :]
        self.state.dma_address = int.from_bytes(register, "big")
        if at + size == 8:
            address, self.state.dma_address = self.state.dma_address, 0
            self._transfer(address)
        return None

    def _transfer(self, at: int) -> None:
        """Do what the access structure at `at` says, and write its control word: 0 when done, or the error bit."""
        memory = self._memory
        try:
            control, length, address = _DMA_ACCESS.unpack(memory.read(at, _DMA_ACCESS.size))
        except MemoryRangeError:
            return  # there is nowhere to say so
        if control & DMA_SELECT:
            self._select(control >> 16)
        error = 0
        if control & DMA_READ:
            try:
                self._copy(address, length)
            except MemoryRangeError:
                error = DMA_ERROR
        elif control & DMA_WRITE:
            error = DMA_ERROR  # no item is writable
        elif control & DMA_SKIP:
            self._take(length)
        memory.write(at, error.to_bytes(4, "big"))

    def _copy(self, address: int, length: int) -> None:
        self._memory.zero(address, length)  # what the item has no data for; raises before any is taken
        self._memory.write(address, self._take(length))
