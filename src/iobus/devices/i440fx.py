"""The host bridge of a 440FX PC, and the shadow RAM behind its PAM registers.

Stands among the devices: `HostBridge` is a PCI function whose seven registers say, of 13 segments from 0xC0000 to
1 MiB, whether reads and writes of the CPU reach RAM; `Shadow` is those segments, and knows the guest's memory. By the
Intel 440FX PCIset datasheet (290549), "82441FX PCI and Memory Controller (PMC)", sections 3.2 and 4.1. Of the bridge's
other registers the header is here; those that set up DRAM chips read 0.

A segment is a slot of memory. Its four states without remapping anything:

    RE WE   reads from      writes go to     the slot
    1  1    RAM             RAM              the RAM, writable
    1  0    RAM             the bus          the RAM, read-only
    0  1    the ROM         RAM              a copy of the ROM, read-only; writes come here, to the RAM's contents
    0  0    the ROM         the bus          a copy of the ROM, read-only
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

from iobus.bus import Device
from iobus.devices.pci import COMMAND, STATUS, PciFunction
from iobus.memory import Memory
from iobus.state import Length, Range, State, Stateful

BASE: Final = 0xC0000
SEGMENTS: Final = (*((BASE + 0x4000 * index, 0x4000) for index in range(12)), (0xF0000, 0x10000))
"""Address and size of each segment, in the order of their bits in PAM1-PAM6 and, the last, PAM0."""

PAM: Final = 0x59
"""The first of the seven registers: PAM0, whose upper half is the segment at 0xF0000."""
RE: Final = 1 << 0
"""Reads reach RAM."""
WE: Final = 1 << 1
"""Writes reach RAM."""

_UNIT: Final = 0x400

_INTEL, _82441FX, _HOST_BRIDGE = 0x8086, 0x1237, 0x060000
_REVISION: Final = 2
_MAE_BME: Final = 0x0006  # memory and bus master always enabled
_PERRE_SERRE: Final = 0x0140
_DEVSEL_MEDIUM: Final = 0x0280  # and fast back-to-back


class HostBridge(PciFunction):
    """The 82441FX. `shadow(segment, attributes)` is called for each segment whose RE and WE may have changed."""

    def __init__(self, shadow: Callable[[int, int], None]) -> None:
        self._shadow = shadow
        super().__init__(_INTEL, _82441FX, _HOST_BRIDGE, _REVISION)
        self.fix(COMMAND, 2, _MAE_BME)
        self.fix(STATUS, 2, _DEVSEL_MEDIUM)
        self.writable(COMMAND, 2, _PERRE_SERRE)
        self.writable(PAM, 1, (RE | WE) << 4)
        for register in range(PAM + 1, PAM + 7):
            self.writable(register, 1, RE | WE | (RE | WE) << 4)
        self.reset()

    def written(self, offset: int, size: int) -> None:
        if offset >= PAM + 7 or offset + size <= PAM:
            return
        config = self.state.config
        for segment in range(len(SEGMENTS) - 1):
            self._shadow(segment, config[PAM + 1 + segment // 2] >> 4 * (segment % 2) & (RE | WE))
        self._shadow(len(SEGMENTS) - 1, config[PAM] >> 4 & (RE | WE))


@dataclass
class ShadowState(State):
    """What a segment's slot does not hold."""

    attributes: list[Annotated[int, Range(0, RE | WE)]] = field(default_factory=lambda: [0] * len(SEGMENTS))
    ram: list[Annotated[bytes, Length(_UNIT, _UNIT)]] = field(
        default_factory=lambda: [bytes(_UNIT)] * (Shadow.length // _UNIT)
    )
    """In units of 1 KiB, the RAM's contents of segments whose reads come from the ROM; others do not count."""


class Shadow(Stateful, Device):
    """The 256 KiB from 0xC0000: attach it there, to take the writes that RAM does not.

    `rom` is what the segments read without RAM, its last byte at 1 MiB; where it does not reach, all ones. Adds the
    segments' slots to `memory`, which must not have them.
    """

    name = "shadow"
    length: Final = 0x40000
    state: ShadowState

    def __init__(self, memory: Memory, rom: bytes) -> None:
        self._memory = memory
        visible = rom.rjust(self.length, b"\xff")[-self.length :]
        self._rom = [visible[base - BASE : base - BASE + size] for base, size in SEGMENTS]
        self._slots = [memory.add(base, size, readonly=True) for base, size in SEGMENTS]
        for slot, data in zip(self._slots, self._rom, strict=True):
            memory.program(slot.base, data)
        self.state = ShadowState()

    def set(self, segment: int, attributes: int) -> None:
        """Give `segment` its RE and WE; RAM keeps its contents. What it has already is no change."""
        before = self.state.attributes[segment]
        if attributes == before:
            return
        self.state.attributes[segment] = attributes
        slot = self._slots[segment]
        if (attributes ^ before) & RE:
            ram, first = self.state.ram, (slot.base - BASE) // _UNIT
            units = slice(first, first + slot.size // _UNIT)
            if before & RE:
                data = self._memory.read(slot.base, slot.size)
                ram[units] = [data[at : at + _UNIT] for at in range(0, slot.size, _UNIT)]
            self._memory.program(slot.base, b"".join(ram[units]) if attributes & RE else self._rom[segment])
        self._memory.protect(slot, attributes != RE | WE)

    def restored(self) -> None:
        """Protect the slots as the state says; their contents are the memory's, restored with it."""
        state = self.state
        for slot, attributes in zip(self._slots, state.attributes, strict=True):
            self._memory.protect(slot, attributes != RE | WE)

    def write(self, offset: int, size: int, value: int) -> object:
        """A write that a slot did not take: into RAM where WE says so, else it is not ours."""
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            segment = min(at // 0x4000, len(SEGMENTS) - 1)
            if not self.state.attributes[segment] & WE:
                return NotImplemented
            number, place = divmod(at, _UNIT)
            unit = self.state.ram[number]
            self.state.ram[number] = unit[:place] + bytes([byte]) + unit[place + 1 :]
        return None
