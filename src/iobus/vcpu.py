"""The virtual CPU: where an access to an address goes. vCPU bus -> machine bus -> exit.

Stands above `bus.py`, `memory.py`, `paging.py` and `exits.py`; knows no engine and no device. An engine
gives each `VCPU` an `Executor`, which runs guest code and calls the paths `mmio_path` and `pio_path`; software
that acts for the guest calls `load` and `store` with guest virtual addresses. Both end in one path:

    vCPU's devices  ->  machine's devices  ->  exit to whoever called run(), load() or store()

A machine lock (`machine.lock`) is held while devices are asked, and not while an exit waits for its answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from iobus.bus import Bus, IobusError
from iobus.clock import Tsc
from iobus.cpu_registers import Registers
from iobus.exits import EngineError, Exit, KickExit, MmioExit, PioExit
from iobus.irq import Controller
from iobus.memory import PAGE_SIZE
from iobus.paging import Paging, translate
from iobus.path import AccessPath

if TYPE_CHECKING:
    from iobus.machine import Machine

Answer = Callable[["VCPU", MmioExit | PioExit], int]
"""Completes an unclaimed access on the spot: returns the value of a read (ignored for a write)."""


class AccessPendingError(IobusError):
    """Another access while an exit waits for its completion: complete it, or call `abandon`."""


class Executor(Protocol):
    """An engine's side of one vCPU."""

    traps_msrs: bool
    """Whether the controller's MSRs and CR8 reach it: without that, CPUID must not offer them."""

    tsc: Tsc | None
    """The guest's TSC, where the engine can tell it; None without."""

    def run(self, answer: Answer | None) -> Exit:
        """Run guest code until an exit; `answer`, where given, takes unclaimed accesses instead."""

    def unclaimed(self, exit: MmioExit | PioExit) -> int:
        """Have an access completed by `run`'s `answer` or its caller; return the value of a read."""

    def kick(self) -> None:
        """Make `run` return `KickExit` soon, from any thread; kept if it is not running."""

    def interrupt(self) -> None:
        """Ask the vCPU's controller again for a pending interrupt, from any thread."""

    def nmi(self) -> None:
        """Deliver an NMI."""

    def init(self) -> None:
        """Put the CPU in the INIT state, waiting for start-up (the boot CPU starts at the reset vector)."""

    def startup(self, vector: int) -> None:
        """Start at `vector << 12` in real mode if the CPU waits for it."""

    def get_registers(self) -> Registers:
        """Return the registers; the CPU must not be running."""

    def set_registers(self, registers: Registers) -> None:
        """Replace the registers; the CPU must not be running."""

    def paging(self) -> Paging:
        """Return the registers that decide a translation, also from inside a device callback."""

    def rip(self) -> int:
        """Return the instruction pointer as far as it is known (see the engine's docs)."""


@dataclass
class CpuFeatures:
    """What CPUID says of the hardware around the CPU; whoever wires the machine sets it."""

    apic_timer_hz: int = 0
    """The clock of the LAPIC's timer in Hz, for CPUID leaf 0x15; 0 where there is no LAPIC."""
    x2apic: bool = False
    tsc_deadline: bool = False


@dataclass(slots=True)
class _Emulated:
    """A `load` or `store` under way: its fragments, their data, and how far it has come."""

    key: tuple[str, int, int, int | None]
    fragments: list[tuple[int, int, int, bool]]
    """(guest physical address, offset in data, length, whether it is plain RAM): 1-8 bytes where it is not."""
    data: bytearray
    done: int = 0
    exit: MmioExit | None = field(default=None)


class VCPU:
    """One virtual CPU of a `Machine`: its two buses, its registers, and `run`."""

    def __init__(self, machine: Machine, index: int) -> None:
        self.machine: Final = machine
        self.index: Final = index
        self.mmio: Final = Bus(name=f"vcpu{index}.mmio")
        """Devices of this vCPU alone; they eclipse the machine's at the same address."""
        self.pio: Final = Bus(0x10000, name=f"vcpu{index}.pio")
        self.controller: Controller | None = None
        """Where the engine asks for interrupts, CR8 and the controller's MSRs."""
        self.features: Final = CpuFeatures()
        self.executor: Executor = NoExecutor()
        self.woken: Final = threading.Event()
        """Set by what can end an `HltExit`: an NMI, INIT, start-up or kick. For who runs several vCPUs (smp.py)."""
        self.mmio_path: Final = AccessPath(self.mmio, machine.mmio, machine.lock, self._unclaimed_mmio)
        """What an engine calls for memory-mapped I/O: accesses to physical addresses, each within a page."""
        self.pio_path: Final = AccessPath(self.pio, machine.pio, machine.lock, self._unclaimed_pio)
        """What an engine calls for IN and OUT of 1, 2 or 4 bytes."""
        self._pending: list[
            _Emulated
        ] = []  # the newest last: a device's, left waiting in its callback, under its caller's

    def __repr__(self) -> str:
        return f"<VCPU {self.index} of {self.machine!r}>"

    # What a caller does.

    def run(self, answer: Answer | None = None) -> Exit:
        """Run guest code until something needs the caller, and say what.

        An unclaimed access comes back as `MmioExit` or `PioExit`; put a read's value in its `data`
        and call `run` again. With `answer`, that function completes unclaimed accesses instead.
        Raises `DeviceError` when a device does (the access is completed with all ones, so `run` can
        go on), `TimerError` when a timer does, `WatchError` when what a watched event calls does, `EngineError` when
        there is no engine or it cannot go on.
        """
        self.machine.started()
        exit = self.executor.run(answer)
        if isinstance(exit, KickExit):
            self.machine.raise_error()
        return exit

    def kick(self) -> None:
        """Make `run` return `KickExit` soon, or at once when called next. From any thread."""
        self.executor.kick()
        self.woken.set()

    @property
    def registers(self) -> Registers:
        """The architectural registers, a copy; assign to change them while the vCPU is not running."""
        return self.executor.get_registers()

    @registers.setter
    def registers(self, registers: Registers) -> None:
        self.executor.set_registers(registers)

    def translate(self, gva: int, *, write: bool = False, user: bool | None = None, fetch: bool = False) -> int:
        """Return the guest physical address of `gva` under this vCPU's page tables.

        `user` defaults to the current privilege level being 3. Raises `PageFault`, `ProtectionFault`.
        """
        paging = self.executor.paging()
        return translate(
            self.machine.memory, paging, gva,
            write=write, user=paging.cpl == 3 if user is None else user, fetch=fetch,
        )  # fmt: skip

    def load(self, gva: int, size: int, *, user: bool | None = None) -> int | MmioExit:
        """Read `size` bytes at guest virtual address `gva` as the guest would; little-endian.

        RAM is read, a device asked, and an access no device claims returned as an `MmioExit`: put
        its value in `data` and call again with the same arguments; parts already read are not read
        again. Raises `PageFault` or `ProtectionFault` before any device is touched, `DeviceError`.

        An access that runs over the end of the address space (2^64 with 64-bit paging) raises `ProtectionFault`. A
        device may call this in its callback; what it leaves waiting is completed after what its caller left.
        """
        result = self._emulate("load", gva, size, None, user)
        return int.from_bytes(result, "little") if isinstance(result, bytearray) else result

    def store(self, gva: int, size: int, value: int, *, user: bool | None = None) -> MmioExit | None:
        """Write `size` bytes at guest virtual address `gva` as the guest would; as `load` otherwise.

        Call again with the same arguments after an `MmioExit`, which brings the value in `data`.
        """
        if value < 0 or value >> 8 * size:
            raise ValueError(f"value {value:#x} does not fit in {size} bytes")
        result = self._emulate("store", gva, size, value, user)
        return result if isinstance(result, MmioExit) else None

    def eclipses_ram(self, gpa: int, length: int = 1) -> bool:
        """Whether a device of this vCPU's own lies over some of `[gpa, gpa + length)`, were that RAM.

        For this vCPU it is then no RAM: the device is asked, and RAM has what it declines. An engine lets
        such a page's accesses go to `mmio_path`, and learns of changes by `mmio.on_change`. Devices
        that tell their claim by `in_range` do not count: RAM lies over them, as over the machine's.
        """
        own, end = self.mmio, gpa + length
        if end <= own.low or own.high <= gpa:
            return False
        return any(
            region.base < end and gpa < region.base + region.length
            for region in own.regions
            if region.enabled and region.in_range is None
        )

    def abandon(self) -> None:
        """Drop each `load` and `store` that waits for the completion of its exit."""
        self._pending.clear()

    # What a LAPIC calls (irq.Processor), with the machine lock held.

    def interrupt(self) -> None:
        """The controller may have an interrupt: look again."""
        self.executor.interrupt()

    def nmi(self) -> None:
        """Deliver a non-maskable interrupt."""
        self.executor.nmi()
        self.woken.set()

    def init(self) -> None:
        """INIT: reset the CPU and wait for a start-up message."""
        self.executor.init()
        self.woken.set()

    def startup(self, vector: int) -> None:
        """SIPI: start at `vector << 12` if the CPU waits for it."""
        self.executor.startup(vector)
        self.woken.set()

    # Within.

    def _unclaimed_mmio(self, address: int, size: int, value: int | None) -> int:
        if self._is_ram(
            address, size, write=value is not None
        ):  # eclipsed, by a device that declined or on another vCPU
            if value is None:
                return self.machine.memory.load(address, size)
            self.machine.memory.store(address, size, value)
            return 0
        return self._unclaimed(MmioExit(address, size, value is not None, value or 0))

    def _unclaimed_pio(self, port: int, size: int, value: int | None) -> int:
        return self._unclaimed(PioExit(port, size, value is not None, value or 0))

    def _unclaimed(self, exit: MmioExit | PioExit) -> int:
        return self.executor.unclaimed(exit) & (1 << 8 * exit.size) - 1

    def _is_ram(self, gpa: int, length: int, *, write: bool) -> bool:
        return self.machine.memory.find(gpa, length, write=write) is not None

    def _emulate(self, verb: str, gva: int, size: int, value: int | None, user: bool | None) -> bytearray | MmioExit:
        """The seed's emulated read and write: finish an earlier exit, translate, RAM, device, exit."""
        key = (verb, gva, size, value)
        access = self._pending[-1] if self._pending else None
        if access is None:
            if size < 1:
                raise ValueError(f"access of {size} bytes at {gva:#x}: give 1 or more")
            access = self._start(key, user)
        elif access.key != key:
            raise AccessPendingError(
                f"{verb}({gva:#x}, {size}) while {access.key[0]}({access.key[1]:#x}, {access.key[2]}) waits for its "
                f"{access.exit}: call that again to complete it, or abandon() to drop it"
            )
        if access.exit is not None:
            self._complete(access, access.exit)
            self._pending.pop()
        while access.done < len(access.fragments):
            gpa, offset, length, plain = access.fragments[access.done]
            is_write, place = value is not None, slice(offset, offset + length)
            if not plain:
                piece = int.from_bytes(access.data[place], "little")
                found = self.mmio_path.ask(gpa, length, piece if is_write else None)
                if found is not NotImplemented:
                    if not is_write:
                        access.data[place] = found.to_bytes(length, "little")
                    access.done += 1
                    continue
                if not self._is_ram(gpa, length, write=is_write):
                    access.exit = MmioExit(gpa, length, is_write, piece if is_write else 0)
                    self._pending.append(access)
                    return access.exit
            if is_write:
                self.machine.memory.write(gpa, access.data[place])
            else:
                access.data[place] = self.machine.memory.read(gpa, length)
            access.done += 1
        return access.data

    def _start(self, key: tuple[str, int, int, int | None], user: bool | None) -> _Emulated:
        """Translate every page of the access before any of it happens, and cut it into fragments."""
        _, gva, size, value = key
        fragments: list[tuple[int, int, int, bool]] = []
        at = 0
        while at < size:
            length = min(size - at, PAGE_SIZE - (gva + at) % PAGE_SIZE)
            gpa = self.translate(gva + at, write=value is not None, user=user)
            if self._is_ram(gpa, length, write=value is not None) and not self.eclipses_ram(gpa, length):
                fragments.append((gpa, at, length, True))
            else:  # elements of the bus's sizes, largest first
                part = 0
                while part < length:
                    unit = min(8, 1 << (length - part).bit_length() - 1)
                    fragments.append((gpa + part, at + part, unit, False))
                    part += unit
            at += length
        data = bytearray(size) if value is None else bytearray(value.to_bytes(size, "little"))
        return _Emulated(key, fragments, data)

    def _complete(self, access: _Emulated, exit: MmioExit) -> None:
        """Take the caller's data for the fragment that made `exit`."""
        if not exit.is_write:
            _, offset, length, _ = access.fragments[access.done]
            if exit.data < 0 or exit.data >> 8 * length:
                raise ValueError(f"{exit}: its data does not fit in {length} bytes")
            access.data[offset : offset + length] = exit.data.to_bytes(length, "little")
        access.exit = None
        access.done += 1


class NoExecutor:
    """The vCPU of a machine without a CPU: registers that a test sets, and nothing that runs them."""

    traps_msrs = True
    tsc: Tsc | None = None

    def __init__(self) -> None:
        self._registers = Registers()

    def run(self, answer: Answer | None) -> Exit:
        raise EngineError("this machine has no CPU engine: give Machine one, or drive its buses directly")

    def unclaimed(self, exit: MmioExit | PioExit) -> int:
        return (1 << 8 * exit.size) - 1

    def kick(self) -> None: ...

    def interrupt(self) -> None: ...

    def nmi(self) -> None: ...

    def init(self) -> None:
        self._registers = Registers()

    def startup(self, vector: int) -> None: ...

    def get_registers(self) -> Registers:
        return Registers.restore(self._registers.save())

    def set_registers(self, registers: Registers) -> None:
        self._registers = Registers.restore(registers.save())

    def paging(self) -> Paging:
        r = self._registers
        return Paging(r.cr0, r.cr3, r.cr4, r.efer, r.rflags, r.cpl)

    def rip(self) -> int:
        return self._registers.rip
