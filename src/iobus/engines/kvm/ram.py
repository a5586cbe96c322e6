"""Guest RAM as the kernel's memory slots: read-only where it is, and absent where a vCPU's own device lies over it.

Beside `vm.py`; `engine.py` keeps one. The kernel has one memory map for all vCPUs, so a page that a LAPIC eclipses for
its own vCPU goes to the access path for all, which answers the others from RAM (docs/access-path.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from iobus.engines.kvm import abi, ioctls
from iobus.engines.kvm.ioctls import call
from iobus.engines.kvm.vm import Vm
from iobus.exits import EngineError
from iobus.machine import Machine
from iobus.memory import PAGE_SIZE


class _Piece(NamedTuple):
    """What one slot of the kernel maps."""

    base: int
    size: int
    host: int
    readonly: bool


class Ram:
    """The slots of `vm`, kept in line with `machine`'s memory."""

    def __init__(self, vm: Vm, machine: Machine) -> None:
        self._vm: Final = vm
        self._machine: Final = machine
        self._mapped: dict[_Piece, int] = {}  # and the slot's number
        self._seen: tuple[object, ...] = ()
        self.stale = False
        """Set where something may have changed: `sync` is due before guest code goes on."""

    def is_current(self) -> bool:
        """Whether the guest has the memory that the machine has."""
        memory = self._machine.memory
        return not self.stale and self._seen == (memory.slots, memory.readonly)

    def sync(self) -> None:
        """Give the guest the memory that the machine has now. No vCPU may be in guest code, one thread call this.

        Raises `EngineError` where the kernel refuses a piece; it is due again then.
        """
        self.stale = False  # first: what changes from here on sets it again
        memory = self._machine.memory
        self._seen = memory.slots, memory.readonly
        try:
            self._set_all()
        except BaseException:
            self.stale = True
            raise

    def _set_all(self) -> None:
        wanted = set(self._pieces())
        for piece in self._mapped.keys() - wanted:
            self._set(piece, self._mapped[piece], 0)
            del self._mapped[piece]
        free = [number for number in range(len(wanted)) if number not in self._mapped.values()]
        for number, piece in zip(free, sorted(wanted - self._mapped.keys()), strict=False):
            self._set(piece, number, piece.size)
            self._mapped[piece] = number

    def _pieces(self) -> Iterator[_Piece]:
        memory = self._machine.memory
        holes = sorted(self._eclipsed())
        for slot in memory.slots:
            host = slot.host
            readonly = slot.base in memory.readonly
            at, end = slot.base, slot.base + slot.size
            for low, high in holes:
                if at < low < end or low <= at < high:
                    if at < low:
                        yield _Piece(at, low - at, host + at - slot.base, readonly)
                    at = max(at, high)
            if at < end:
                yield _Piece(at, end - at, host + at - slot.base, readonly)

    def _eclipsed(self) -> Iterator[tuple[int, int]]:
        """The pages that some vCPU's own devices lie on."""
        for vcpu in self._machine.vcpus:
            for region in vcpu.mmio.regions:
                if region.enabled and region.in_range is None:
                    end = region.base + region.length
                    yield region.base // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE

    def _set(self, piece: _Piece, number: int, size: int) -> None:
        if piece.readonly and not self._vm.offers(ioctls.KVM_CAP_READONLY_MEM):
            raise EngineError("this KVM has no read-only memory; Linux has that since 3.7")
        region = abi.UserspaceMemoryRegion(
            slot=number, flags=ioctls.KVM_MEM_READONLY if piece.readonly else 0, guest_phys_addr=piece.base,
            memory_size=size, userspace_addr=piece.host,
        )  # fmt: skip
        call(self._vm.fd, ioctls.KVM_SET_USER_MEMORY_REGION, region)
