"""An instance of the library: its one CPU, in which vCPUs take turns, with the machine's memory and I/O around it.

The ground of both ways of running (native.py, fallback.py). Its hooks hand each access to the vCPU that
is `current`, and ask nobody where the access is to have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Protocol

from iobus.bus import MOST, Hits
from iobus.claims import Claim, device_error
from iobus.engines.unicorn import library as uc_api
from iobus.engines.unicorn.library import Library
from iobus.engines.unicorn.runner import Runner
from iobus.errors import RAISED
from iobus.exits import EngineError
from iobus.machine import Machine
from iobus.memory import PAGE_SIZE, Slot
from iobus.paging import PHYSICAL_BITS

if TYPE_CHECKING:
    from iobus.engines.unicorn.cpu import UnicornCpu


class _Path(Protocol):
    """What is asked: an `AccessPath`, or nobody."""

    reads: tuple[Hits, ...]
    writes: tuple[Hits, ...]

    def read(self, address: int, size: int, /) -> int: ...

    def write(self, address: int, size: int, value: int, /) -> None: ...

    def read_on(self, address: int, size: int, claim: Claim | None, value: object, /) -> int: ...

    def write_on(self, address: int, size: int, value: int, claim: Claim | None, /) -> None: ...


_Ask = Callable[[_Path, _Path], None]
_HoleRead = Callable[[int, int, int], int]
_HoleWrite = Callable[[int, int, int, int], None]


class Instance:
    """The library's CPU. Which vCPU is in it is said by `take`."""

    def __init__(self, library: Library, machine: Machine) -> None:
        self.library: Final = library
        self.machine: Final = machine
        self.uc: Final = library.open()
        self.callbacks: Final[list[Any]] = []  # the library keeps no reference
        self.runner: Final = Runner(self.poke)
        self._mapped: tuple[Slot, ...] | None = None
        self._guarded: set[int] = set()  # the bases of slots that were read-only once
        self._eclipsed: set[int] = set()  # pages of RAM that a vCPU's own devices lie on: not mapped as RAM
        self._devices_changed = True
        self.current: UnicornCpu | None = None
        """The vCPU whose state is in the library's CPU."""
        self.port_in: Any
        """What IN is to call, where the guest may use the port."""
        self.port_out: Any
        """What OUT is to call."""
        self._ask, self.runs_here, self._make_hole = self._install_io()
        """`runs_here()`: the calling thread is about to run guest code."""
        self.cut_off()

    def take(self, cpu: UnicornCpu) -> None:
        """Let accesses be `cpu`'s from now on."""
        self.current = cpu
        self._ask(cpu.vcpu.mmio_path, cpu.vcpu.pio_path)

    def cut_off(self) -> None:
        """Let accesses reach nobody, until `take`: reads give all ones."""
        self._ask(_Nobody(), _Nobody())

    def hook(self, kind: int, callback: Any, user_data: int | None = None, instruction: int | None = None) -> None:
        """Install a hook and keep its callback alive."""
        self.callbacks.append(callback)
        self.library.add_hook(self.uc, kind, callback, user_data, instruction)

    def after_out(self) -> None:
        """A port was written by guest code."""

    def poke(self) -> None:
        """Make running guest code look at what is asked of it soon. From any thread."""
        raise NotImplementedError

    def invalidate(self, gpa: int, length: int) -> None:
        """Software wrote guest memory: drop translations of code there. From any thread."""
        raise NotImplementedError

    def close(self) -> None:
        """End the runner's thread and free the library's instance."""
        if not self.runner.closing:
            self.runner.close()
            self.library.close(self.uc)

    # Memory.

    @property
    def mapped(self) -> bool:
        """Whether the machine's RAM has been mapped, at the first run."""
        return self._mapped is not None

    def map_memory(self) -> None:
        """Map the machine's RAM, and around it what is asked of the buses. Raises `EngineError`."""
        slots = self.machine.memory.slots
        if self._mapped is slots:
            if self._devices_changed:
                self._map_eclipsed(slots)
            return
        if self._mapped is not None:
            raise EngineError("RAM was added after the machine had run: add all RAM before the first run")
        at = 0
        for slot in slots:
            if slot.base > at:
                self._map_hole(at, slot.base)
            host = slot.host
            self.library.map_ram(self.uc, slot.base, slot.size, host)
            if slot.base in self.machine.memory.readonly:
                self._protect(slot, True)
            self.mapped_ram(slot.base, slot.size, host)
            at = slot.base + slot.size
        self._map_hole(at, 1 << PHYSICAL_BITS)
        self._mapped = slots
        self._map_eclipsed(slots)

    def devices_changed(self) -> None:
        """A vCPU's own devices have moved: see to it before guest code goes on. From any thread."""
        self._devices_changed = self.runner.attention = True
        self.poke()

    def _map_eclipsed(self, slots: tuple[Slot, ...]) -> None:
        """Let pages of RAM with a vCPU's own device on them go to the path, which gives the other vCPUs RAM."""
        self._devices_changed = False
        wanted: dict[int, Slot] = {}
        for vcpu in self.machine.vcpus:
            for region in vcpu.mmio.regions:
                if not region.enabled or region.in_range is not None:
                    continue
                for slot in slots:
                    first, end = max(region.base, slot.base), min(region.base + region.length, slot.base + slot.size)
                    wanted |= dict.fromkeys(range(first // PAGE_SIZE * PAGE_SIZE, end, PAGE_SIZE), slot)
        if wanted.keys() == self._eclipsed:
            return
        for page in self._eclipsed - wanted.keys():
            slot = next(slot for slot in slots if slot.base <= page < slot.base + slot.size)
            self.library.unmap(self.uc, page, PAGE_SIZE)
            host = slot.host + page - slot.base
            self.library.map_ram(self.uc, page, PAGE_SIZE, host)
            if slot.base in self.machine.memory.readonly:
                self.library.protect(self.uc, page, PAGE_SIZE, True)
        for page in wanted.keys() - self._eclipsed:
            self.library.unmap(self.uc, page, PAGE_SIZE)
            self._map_hole(page, page + PAGE_SIZE)
        self._eclipsed = set(wanted)
        self.remapped([piece for slot in slots for piece in self._pieces(slot)])

    def _pieces(self, slot: Slot) -> Iterator[tuple[int, int, int]]:
        """What of a slot is mapped as RAM: gpa, size, the host's address."""
        host, at = slot.host, slot.base
        end = slot.base + slot.size
        for page in (*sorted(page for page in self._eclipsed if slot.base <= page < end), end):
            if at < page:
                yield at, page - at, host + at - slot.base
            at = page + PAGE_SIZE

    def protect(self, slot: Slot, readonly: bool) -> None:
        """Have writes to `slot` go to the buses, or to RAM again, from the next instruction on."""
        if self._mapped is not None:  # else when it is mapped
            self._protect(slot, readonly)

    def _protect(self, slot: Slot, readonly: bool) -> None:
        if slot.base not in self._guarded:
            self._guarded.add(slot.base)
            within = slot.base, slot.base + slot.size - 1  # for all addresses, it would make every store slow
            self.library.add_hook(self.uc, uc_api.HOOK_WRITE_PROTECTED, self._on_protected, within=within)
        for base, size, _ in self._pieces(slot):
            self.library.protect(self.uc, base, size, readonly)

    def mapped_ram(self, gpa: int, size: int, host: int) -> None:
        """RAM was mapped from the host address `host`."""

    def remapped(self, pieces: list[tuple[int, int, int]]) -> None:
        """All RAM is now mapped in these pieces: gpa, size, host address. No guest code is running."""
        self.library.flush_code(self.uc)
        self.library.flush_tlb(self.uc)

    def _map_hole(self, start: int, end: int) -> None:
        """Everything that is not RAM is asked of the buses."""
        read, write = self._make_hole(start)
        pair = uc_api.MMIO_READ_CB(read), uc_api.MMIO_WRITE_CB(write)
        self.callbacks.extend(pair)
        self.library.map_io(self.uc, start, end - start, *pair)

    # The callbacks. This is what every access to a device goes through: whom it asks is in local variables.

    def _install_io(self) -> tuple[_Ask, Callable[[], None], Callable[[int], tuple[_HoleRead, _HoleWrite]]]:
        """Return functions to set who is asked, to set the thread, and to make the callbacks for a range."""
        mmio: _Path
        pio: _Path
        me = 0

        def ask(mmio_path: _Path, pio_path: _Path) -> None:
            nonlocal mmio, pio
            mmio, pio = mmio_path, pio_path

        def runs_here() -> None:
            nonlocal me
            me = get_ident()

        lock = self.machine.lock
        take, give, waiting = lock.take, lock.give, lock.waiting

        def make_hole(start: int) -> tuple[_HoleRead, _HoleWrite]:
            # `AccessPath.read` and `write`, and `Lock`, written out once more: three calls less for each access.

            def read(_: int, offset: int, size: int) -> int:
                claim = value = None
                try:
                    take()
                except IndexError:
                    lock.wait()
                lock.owner = me
                try:
                    call, at, claim = mmio.reads[size][start + offset]
                    value = call(at, size)
                    if type(value) is int and 0 <= value <= MOST[size]:
                        return value
                except RAISED as exc:
                    if claim is not None:
                        self._raised(claim, start + offset, size, None, exc)
                        return MOST[size]
                finally:
                    lock.owner = 0
                    give(True)
                    if waiting:
                        lock.wake()
                try:
                    return mmio.read_on(start + offset, size, claim, value)
                except BaseException as exc:
                    self._fail(exc)
                    return MOST[size]

            def write(_: int, offset: int, size: int, value: int) -> None:
                claim, result = None, NotImplemented
                try:
                    take()
                except IndexError:
                    lock.wait()
                lock.owner = me
                try:
                    call, at, claim = mmio.writes[size][start + offset]
                    result = call(at, size, value)
                except RAISED as exc:
                    if claim is not None:
                        self._raised(claim, start + offset, size, value, exc)
                        return
                finally:
                    lock.owner = 0
                    give(True)
                    if waiting:
                        lock.wake()
                if result is NotImplemented:
                    try:
                        mmio.write_on(start + offset, size, value, claim)
                    except BaseException as exc:
                        self._fail(exc)

            return read, write

        def port_in(_: int, port: int, size: int, __: int) -> int:
            try:
                return pio.read(port & 0xFFFF, size)
            except BaseException as exc:
                self._fail(exc)
                return MOST[size]

        def port_out(_: int, port: int, size: int, value: int, __: int) -> None:
            try:
                pio.write(port & 0xFFFF, size, value & MOST[size])
                self.after_out()
            except BaseException as exc:
                self._fail(exc)

        def write_protected(_: int, __: int, address: int, size: int, value: int, ___: int) -> bool:
            try:
                mmio.write(address, size, value & MOST[size])
            except BaseException as exc:
                self._fail(exc)
            return True  # the library then drops the write

        def cpuid(_: int, __: int) -> int:
            try:
                assert self.current is not None
                self.current.on_cpuid()
            except BaseException as exc:
                self._fail(exc)
            return 1

        self._on_protected = uc_api.WRITE_PROTECTED_CB(write_protected)
        self.port_in = uc_api.IN_CB(port_in)
        self.port_out = uc_api.OUT_CB(port_out)
        self.hook(uc_api.HOOK_INSN, uc_api.CPUID_CB(cpuid), instruction=uc_api.INSN_CPUID)
        return ask, runs_here, make_hole

    def _raised(self, claim: Claim, address: int, size: int, value: int | None, exc: BaseException) -> None:
        error = device_error(claim, address, size, value, exc)
        assert exc.__traceback__ is not None
        error.__cause__ = exc.with_traceback(exc.__traceback__.tb_next)  # the device's own frames
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        assert self.current is not None
        self.current.fail(error)


class _Nobody:
    """Where no access reaches anything."""

    def __init__(self) -> None:
        self.reads: tuple[Hits, ...] = ()
        self.writes: tuple[Hits, ...] = ()

    def read(self, _: int, size: int) -> int:
        return MOST[size]

    def write(self, _: int, __: int, ___: int) -> None: ...

    def read_on(self, _: int, size: int, __: object, ___: object) -> int:
        return MOST[size]

    def write_on(self, _: int, __: int, ___: int, ____: object) -> None: ...
