"""PCI configuration space: functions, and configuration mechanism #1 that reaches them from ports 0xCF8 and 0xCFC.

Stands among the devices: a `PciFunction` knows its 256 bytes, `PciConfig` the functions of bus 0. By the PCI Local Bus
Specification 3.0, sections 3.2.2.3.2 (the mechanism) and 6.1-6.2 (the header). To make a function, derive from
`PciFunction`, name the header's fixed values, allow what software may write with `writable`, and act on writes in
`written`; a base address register of n bytes is a writable register whose low bits, up to n, are not writable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from iobus.bus import Device, Value
from iobus.state import U8, U32, State, StateError, Stateful

SIZE: Final = 256
"""Of a function's configuration space, in bytes."""

# The header (6.1, figure 6-1).
VENDOR_ID: Final = 0x00
DEVICE_ID: Final = 0x02
COMMAND: Final = 0x04
STATUS: Final = 0x06
REVISION_ID: Final = 0x08
CLASS_CODE: Final = 0x09
HEADER_TYPE: Final = 0x0E

MULTI_FUNCTION: Final = 1 << 7
"""Of HEADER_TYPE."""

CONFIG_ENABLE: Final = 1 << 31
"""Of CONFIG_ADDRESS."""
_ADDRESS: Final = CONFIG_ENABLE | 0x00FFFFFC
_ADDRESS_PORT, _DATA_PORT = 0, 4


@dataclass
class PciFunctionState(State):
    """The bytes."""

    config: list[U8] = field(default_factory=lambda: [0] * SIZE)


class PciFunction(Stateful):
    """One function: 256 bytes that reads give, of which writes change the writable bits.

    Derived classes call `fix` and `writable` when they are made, and end with `reset`.
    """

    state: PciFunctionState

    def __init__(self, vendor: int, device: int, class_code: int, revision: int = 0) -> None:
        self._initial = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self.fix(VENDOR_ID, 2, vendor)
        self.fix(DEVICE_ID, 2, device)
        self.fix(REVISION_ID, 1, revision)
        self.fix(CLASS_CODE, 3, class_code)
        self.state = PciFunctionState()
        self.reset()

    def fix(self, offset: int, size: int, value: int) -> None:
        """Have the register begin with `value` at each reset."""
        self._initial[offset : offset + size] = value.to_bytes(size, "little")

    def writable(self, offset: int, size: int, mask: int) -> None:
        """Let software write the bits of `mask` in a register."""
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def reset(self) -> None:
        """Return to the values at power-on, and act on them."""
        self.state.config[:] = self._initial
        self.written(0, SIZE)

    def restored(self) -> None:
        """Bring what follows from the registers in line."""
        self.written(0, SIZE)

    def written(self, offset: int, size: int) -> None:
        """These bytes were written, or all are new: act on them."""

    def read_config(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes within a double word."""
        return int.from_bytes(bytes(self.state.config[offset : offset + size]), "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes within a double word."""
        config = self.state.config
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            mask = self._writable[at]
            config[at] = config[at] & ~mask | byte & mask
        self.written(offset, size)


@dataclass
class PciConfigState(State):
    """CONFIG_ADDRESS."""

    address: U32 = 0

    def check(self) -> None:
        if self.address & ~_ADDRESS:
            raise StateError(f"PciConfigState.address: {self.address:#x} has bits that cannot be set")


class PciConfig(Stateful, Device):
    """8 ports: CONFIG_ADDRESS (4, as a double word only) and CONFIG_DATA (4, bytes, words or the whole).

    Where no function is, as on every bus but 0, reads give all ones and writes are dropped (a master abort). Other
    accesses to CONFIG_ADDRESS are not decoded: a device behind may have the port, as the reset register has 0xCF9.
    """

    name = "pci-config"
    length: Final = 8
    state: PciConfigState

    def __init__(self) -> None:
        self.state = PciConfigState()
        self._functions: dict[int, PciFunction] = {}

    @property
    def functions(self) -> tuple[PciFunction, ...]:
        """The attached functions."""
        return tuple(self._functions.values())

    def attach(self, function: PciFunction, device: int, number: int = 0) -> None:
        """Put a function at `device` (0-31) of bus 0, as its function `number` (0-7)."""
        if not (0 <= device < 32 and 0 <= number < 8):
            raise ValueError(f"PCI device {device} function {number}: there are devices 0-31 with functions 0-7")
        place = device << 3 | number
        if place in self._functions:
            raise ValueError(f"PCI device {device} function {number} is taken")
        self._functions[place] = function

    def reset(self) -> None:
        self.state = PciConfigState()
        for function in self._functions.values():
            function.reset()

    def read(self, offset: int, size: int) -> Value:
        if offset < _DATA_PORT:
            whole = (offset, size) == (_ADDRESS_PORT, 4)
            return self.state.address if whole else NotImplemented
        if not self.state.address & CONFIG_ENABLE:
            return NotImplemented  # type: ignore[no-any-return]
        target = self._target(offset, size)
        if target is None:
            return (1 << 8 * size) - 1
        function, register = target
        return function.read_config(register, size)

    def write(self, offset: int, size: int, value: int) -> object:
        if offset < _DATA_PORT:
            if (offset, size) != (_ADDRESS_PORT, 4):
                return NotImplemented
            self.state.address = value & _ADDRESS
            return None
        if not self.state.address & CONFIG_ENABLE:
            return NotImplemented
        target = self._target(offset, size)
        if target is not None:
            function, register = target
            function.write_config(register, size, value)
        return None

    def _target(self, offset: int, size: int) -> tuple[PciFunction, int] | None:
        """The function and register that an access to CONFIG_DATA is for."""
        address = self.state.address
        function = self._functions.get(address >> 8 & 0xFF) if not address >> 16 & 0xFF else None
        lane = offset - _DATA_PORT
        if function is None or lane + size > 4:
            return None
        return function, address & 0xFC | lane
