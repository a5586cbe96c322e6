"""The access path without a CPU engine: the vCPU's devices, the machine's, exit; `load` and `store` on top of it."""

from __future__ import annotations

import pytest
from bus_devices import Bytes, Recorder
from page_tables import KIB4, PE, PG, SMAP, WP, A, D, P, Tables, U, W

from iobus.bus import Device, DeviceError
from iobus.clock import SteppedClock
from iobus.cpu_registers import Registers
from iobus.exits import EngineError, MmioExit, PageFault, ProtectionFault
from iobus.machine import Machine
from iobus.vcpu import AccessPendingError

PAGE_A, PAGE_B = 0x4000_0000, 0x7000_3000
"""Guest physical pages of two devices, far apart."""
GVA = 0x1234_5000
"""Where the guest sees them, one page after the other."""


class Machined:
    """A machine of 2 MiB without an engine, whose vCPU 0 has paging on, with what the tests map into it."""

    def __init__(self, cpus: int = 1) -> None:
        self.machine = Machine(cpus=cpus, clock=SteppedClock())
        self.memory = self.machine.memory
        self.memory.add(0, 0x200000)
        self.vcpu = self.machine.vcpus[0]
        self.tables = Tables(self.memory)
        self.page(PE | WP | PG)

    def page(self, cr0: int, cr4: int = 0, cpl: int = 0, rflags: int = 2) -> None:
        paging = self.tables.paging()
        registers = Registers(cr0=cr0, cr3=paging.cr3, cr4=paging.cr4 | cr4, efer=paging.efer, rflags=rflags)
        registers.ss.access = 0x93 | cpl << 5
        self.vcpu.registers = registers

    def map(self, *gpas: int) -> None:
        """Map consecutive pages from `GVA` on."""
        for index, gpa in enumerate(gpas):
            self.tables.map(GVA + index * KIB4, gpa)


@pytest.fixture
def m() -> Machined:
    return Machined()


# load and store: RAM, a device, an exit.


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 3, 100])
def test_load_and_store_in_ram(m: Machined, size: int) -> None:
    """RAM is read and written little-endian, at any size and alignment."""
    m.map(0x8000)
    value = int.from_bytes(bytes(range(1, size + 1)), "little")
    assert m.vcpu.store(GVA + 5, size, value) is None
    assert m.memory.read(0x8005, size) == bytes(range(1, size + 1))
    assert m.vcpu.load(GVA + 5, size) == value


def test_an_access_over_two_ram_pages(m: Machined) -> None:
    """Each half goes where its own page is mapped."""
    m.map(0x9000, 0x5000)
    m.vcpu.store(GVA + 0xFFD, 8, 0x8877665544332211)
    assert m.memory.read(0x9FFD, 3) == b"\x11\x22\x33"
    assert m.memory.read(0x5000, 5) == b"\x44\x55\x66\x77\x88"
    assert m.vcpu.load(GVA + 0xFFD, 8) == 0x8877665544332211


def test_ram_eclipses_devices(m: Machined) -> None:
    """RAM is not on the bus: a device registered over it is not asked by `load` and `store`."""
    device = Recorder()
    m.machine.mmio.attach(device, 0x8000, 0x1000)
    m.map(0x8000)
    m.vcpu.store(GVA, 4, 1)
    assert m.vcpu.load(GVA, 4) == 1
    assert device.calls == []


def test_load_and_store_at_a_device(m: Machined) -> None:
    """What translates to a device's address reaches the device, with the offset from its base."""
    device = Bytes()
    m.machine.mmio.attach(device, PAGE_A + 0x100, 16)
    m.map(PAGE_A)
    assert m.vcpu.load(GVA + 0x104, 4) == 0x17161514
    assert m.vcpu.store(GVA + 0x108, 2, 0xBEEF) is None
    assert device.calls == [("r", 4, 4), ("w", 8, 2, 0xBEEF)]


def test_wide_accesses_reach_devices_in_elements_of_8_bytes(m: Machined) -> None:
    """16 and 32 bytes, as SSE and AVX make them, arrive as elements of 8, lowest address first."""
    device = Bytes(bytes(64))
    m.machine.mmio.attach(device, PAGE_A, 64)
    m.map(PAGE_A)
    value = int.from_bytes(bytes(range(32)), "little")
    m.vcpu.store(GVA, 32, value)
    assert m.vcpu.load(GVA + 8, 16) == int.from_bytes(bytes(range(8, 24)), "little")
    assert [call[:3] for call in device.calls] == [
        *[("w", 0, 8), ("w", 8, 8), ("w", 16, 8), ("w", 24, 8)],
        *[("r", 8, 8), ("r", 16, 8)],
    ]


@pytest.mark.parametrize(
    ("offset", "size", "pieces"),
    [
        (0xFFF, 2, [(0xFFF, 1), (0, 1)]),
        (0xFFD, 4, [(0xFFD, 2), (0xFFF, 1), (0, 1)]),
        (0xFFE, 8, [(0xFFE, 2), (0, 4), (4, 2)]),
        (0xFF9, 16, [(0xFF9, 4), (0xFFD, 2), (0xFFF, 1), (0, 8), (8, 1)]),
        (0x10, 3, [(0x10, 2), (0x12, 1)]),
        (0x10, 7, [(0x10, 4), (0x14, 2), (0x16, 1)]),
    ],
)
def test_odd_splits(m: Machined, offset: int, size: int, pieces: list[tuple[int, int]]) -> None:
    """What is cut at a page, or is no power of two, arrives in bus sizes, largest first, and comes together again."""
    first, second = Bytes(bytes(KIB4)), Bytes(bytes(KIB4))
    m.machine.mmio.attach(first, PAGE_A, KIB4)
    m.machine.mmio.attach(second, PAGE_B, KIB4)
    m.map(PAGE_A, PAGE_B)
    value = int.from_bytes(bytes(range(1, size + 1)), "little")
    assert m.vcpu.store(GVA + offset, size, value) is None
    assert m.vcpu.load(GVA + offset, size) == value
    here = [piece for piece in pieces if piece[0] >= offset]
    there = [piece for piece in pieces if piece[0] < offset]
    for device, own in ((first, here), (second, there)):
        assert [call[1:3] for call in device.calls if call[0] == "w"] == own
        assert [call[1:3] for call in device.calls if call[0] == "r"] == own


# Two pages, and who owns the data.


def test_one_write_over_two_mmio_pages(m: Machined) -> None:
    """Each page's part goes to the device that page is mapped to, as two accesses."""
    first, second = Recorder(), Recorder()
    m.machine.mmio.attach(first, PAGE_A, KIB4)
    m.machine.mmio.attach(second, PAGE_B, KIB4)
    m.map(PAGE_A, PAGE_B)
    m.vcpu.store(GVA + 0xFFC, 8, 0x88776655_44332211)
    assert first.calls == [(0xFFC, 4, 0x44332211)]
    assert second.calls == [(0, 4, 0x88776655)]


def test_a_device_cannot_change_the_second_fragment(m: Machined) -> None:
    """While the first page's device is written, it rewrites tables, registers and the exit's RAM: the rest stands."""
    second, elsewhere = Recorder(), Recorder()

    class Meddles(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            m.tables.map(GVA + KIB4, 0x8000)  # the second page now maps to RAM
            m.vcpu.store(GVA + KIB4 + 0x40, 8, 0)  # another access of the same vCPU in between
            m.vcpu.registers = Registers()

    m.machine.mmio.attach(Meddles(), PAGE_A, KIB4)
    m.machine.mmio.attach(second, PAGE_B, KIB4)
    m.machine.mmio.attach(elsewhere, GVA + KIB4, KIB4)
    m.map(PAGE_A, PAGE_B)
    m.vcpu.store(GVA + 0xFFC, 8, 0x88776655_44332211)
    assert second.calls == [(0, 4, 0x88776655)]
    assert elsewhere.calls == [] and m.memory.read(0x8000, KIB4) == bytes(KIB4)


def test_an_exits_data_is_the_callers_copy(m: Machined) -> None:
    """Changing the data of a write's exit changes neither what was written nor the next fragment."""
    second = Recorder()
    m.machine.mmio.attach(second, PAGE_B, KIB4)
    m.map(PAGE_A, PAGE_B)
    exit = m.vcpu.store(GVA + 0xFFC, 8, 0x88776655_44332211)
    assert exit == MmioExit(PAGE_A + 0xFFC, 4, True, 0x44332211)
    exit.data = 0xDEAD
    exit.address = 0
    assert m.vcpu.store(GVA + 0xFFC, 8, 0x88776655_44332211) is None
    assert second.calls == [(0, 4, 0x88776655)]


def test_a_device_that_moves_the_next_fragments_device(m: Machined) -> None:
    """Fragments are accesses of their own: the second sees registrations that the first one changed."""
    first, second = Recorder(), Recorder()

    class Moves(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            region.move(PAGE_B)

    m.machine.mmio.attach(Moves(), PAGE_A, KIB4)
    m.machine.mmio.attach(first, PAGE_B, KIB4)
    region = m.machine.mmio.attach(second, 0, KIB4, priority=1)
    m.map(PAGE_A, PAGE_B)
    m.vcpu.store(GVA + 0xFFC, 8, 0x88776655_44332211)
    assert (first.calls, second.calls) == ([], [(0, 4, 0x88776655)])


# Exits.


def test_a_load_exits_and_takes_the_callers_data(m: Machined) -> None:
    """An unclaimed read comes back as `MmioExit`; the same call again gives the caller's data."""
    m.map(PAGE_A)
    exit = m.vcpu.load(GVA + 8, 4)
    assert exit == MmioExit(PAGE_A + 8, 4, False)
    exit.data = 0xCAFE
    assert m.vcpu.load(GVA + 8, 4) == 0xCAFE
    assert isinstance(m.vcpu.load(GVA + 8, 4), MmioExit), "the next load is a new access"


def test_a_store_exits_with_its_data(m: Machined) -> None:
    """An unclaimed write comes back with address, size and data; the same call again finishes it."""
    m.map(PAGE_A)
    assert m.vcpu.store(GVA + 8, 2, 0xBEEF) == MmioExit(PAGE_A + 8, 2, True, 0xBEEF)
    assert m.vcpu.store(GVA + 8, 2, 0xBEEF) is None


def test_what_is_done_is_not_done_again(m: Machined) -> None:
    """After the second page's exit the first page's device, whose read may pop a FIFO, is not read again."""
    first = Bytes(bytes(range(256)) * 16)
    m.machine.mmio.attach(first, PAGE_A, KIB4)
    m.map(PAGE_A, PAGE_B)
    exit = m.vcpu.load(GVA + 0xFFC, 8)
    assert exit == MmioExit(PAGE_B, 4, False)
    first.data[:] = bytes(KIB4)
    exit.data = 0x11223344
    assert m.vcpu.load(GVA + 0xFFC, 8) == 0x11223344_FFFEFDFC
    assert first.calls == [("r", 0xFFC, 4)]

    written = m.vcpu.store(GVA + 0xFFC, 8, 0xAAAAAAAA_BBBBBBBB)
    assert written == MmioExit(PAGE_B, 4, True, 0xAAAAAAAA)
    assert m.vcpu.store(GVA + 0xFFC, 8, 0xAAAAAAAA_BBBBBBBB) is None
    assert first.calls[1:] == [("w", 0xFFC, 4, 0xBBBBBBBB)]


def test_several_exits_of_one_access(m: Machined) -> None:
    """16 unclaimed bytes over two pages leave once for each element, and come together in order."""
    m.map(PAGE_A, PAGE_B)
    seen = []
    result = m.vcpu.load(GVA + 0xFF4, 20)
    while isinstance(result, MmioExit):
        seen.append((result.address, result.size))
        result.data = len(seen)
        result = m.vcpu.load(GVA + 0xFF4, 20)
    assert seen == [(PAGE_A + 0xFF4, 8), (PAGE_A + 0xFFC, 4), (PAGE_B, 8)]
    assert result == 1 | 2 << 64 | 3 << 96


def test_data_that_does_not_fit_can_be_put_right(m: Machined) -> None:
    """Data too wide, negative or no int is the caller's error, and the access still waits."""
    first = Bytes(bytes(KIB4))
    m.machine.mmio.attach(first, PAGE_A, KIB4)
    m.map(PAGE_A, PAGE_B)
    exit = m.vcpu.load(GVA + 0xFFC, 8)
    assert isinstance(exit, MmioExit)
    for wrong in (1 << 32, -1):
        exit.data = wrong
        with pytest.raises(ValueError, match="its data does not fit in 4 bytes"):
            m.vcpu.load(GVA + 0xFFC, 8)
    exit.data = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        m.vcpu.load(GVA + 0xFFC, 8)
    exit.data = 7
    assert m.vcpu.load(GVA + 0xFFC, 8) == 7 << 32
    assert len(first.calls) == 1


def test_another_access_while_one_waits_is_refused(m: Machined) -> None:
    """Until it is completed or abandoned, a waiting access keeps the vCPU's path; the error names both."""
    m.map(PAGE_A)
    exit = m.vcpu.load(GVA, 4)
    assert isinstance(exit, MmioExit)
    for call in (
        lambda: m.vcpu.load(GVA, 8),
        lambda: m.vcpu.load(GVA + 4, 4),
        lambda: m.vcpu.store(GVA, 4, 0),
    ):
        with pytest.raises(AccessPendingError, match=rf"while load\({GVA:#x}, 4\) waits for its MmioExit"):
            call()
    exit.data = 5
    assert m.vcpu.load(GVA, 4) == 5
    m.vcpu.load(GVA, 4)
    m.vcpu.abandon()
    assert m.vcpu.store(GVA, 4, 1) == MmioExit(PAGE_A, 4, True, 1)
    with pytest.raises(AccessPendingError):
        m.vcpu.store(GVA, 4, 2)


def test_an_exit_left_by_a_device_waits_until_its_callers_is_completed(m: Machined) -> None:
    """Neither takes the other's place: the newest is completed first, then the older one, each with its own data."""
    inner: list[int | MmioExit | None] = []

    class Asking(Device):
        def read(self, offset: int, size: int) -> int:
            inner.append(m.vcpu.load(GVA + 0x2000, 4))
            return 0x11

    m.machine.mmio.attach(Asking(), PAGE_A, KIB4)
    m.map(PAGE_A, PAGE_B, PAGE_B + KIB4)
    outer = m.vcpu.load(GVA + 0xFFE, 4)
    assert isinstance(outer, MmioExit) and outer.address == PAGE_B
    outer.data = 0x2233
    assert m.vcpu.load(GVA + 0xFFE, 4) == 0x2233_0011
    (exit,) = inner
    assert isinstance(exit, MmioExit) and exit.address == PAGE_B + KIB4
    with pytest.raises(AccessPendingError):
        m.vcpu.load(GVA + 0x1000, 4)
    exit.data = 0x55
    assert m.vcpu.load(GVA + 0x2000, 4) == 0x55


def test_an_access_over_the_end_of_the_address_space_faults(m: Machined) -> None:
    """There is no address behind 2^64 - 1: nothing of the access happens."""
    device = Recorder()
    m.machine.mmio.attach(device, PAGE_A, KIB4)
    m.tables.map((1 << 64) - KIB4, PAGE_A)
    m.tables.map(0, PAGE_B)
    with pytest.raises(ProtectionFault):
        m.vcpu.load((1 << 64) - 2, 4)
    assert m.vcpu.load((1 << 64) - 2, 2) == 0x42 and len(device.calls) == 1


def test_a_device_attached_meanwhile_does_not_take_a_completed_access(m: Machined) -> None:
    """The caller's answer completes the exit, whoever has registered since."""
    m.map(PAGE_A)
    exit = m.vcpu.load(GVA, 4)
    assert isinstance(exit, MmioExit)
    late = Recorder()
    m.machine.mmio.attach(late, PAGE_A, KIB4)
    exit.data = 5
    assert m.vcpu.load(GVA, 4) == 5
    assert late.calls == []
    assert m.vcpu.load(GVA, 4) == 0x42


def test_a_device_error_in_the_second_fragment_drops_the_access(m: Machined) -> None:
    """After `DeviceError` nothing waits: the vCPU takes another access at once."""
    m.machine.mmio.attach(Recorder(-1), PAGE_B, KIB4)
    m.machine.mmio.attach(Recorder(), PAGE_A, KIB4)
    m.map(PAGE_A, PAGE_B)
    with pytest.raises(DeviceError, match="read returned -0x1"):
        m.vcpu.load(GVA + 0xFFC, 8)
    assert m.vcpu.load(GVA, 4) == 0x42


@pytest.mark.parametrize("size", [0, -1])
def test_an_access_has_at_least_one_byte(m: Machined, size: int) -> None:
    """A size below 1 is the caller's error."""
    with pytest.raises(ValueError, match=f"access of {size} bytes at 0x10: give 1 or more"):
        m.vcpu.load(0x10, size)


@pytest.mark.parametrize(("size", "value"), [(1, 256), (4, -1), (16, 1 << 128)])
def test_a_stores_value_must_fit(m: Machined, size: int, value: int) -> None:
    """A value that does not fit the size is refused before anything is written."""
    m.map(0x8000)
    with pytest.raises(ValueError, match=f"does not fit in {size} bytes"):
        m.vcpu.store(GVA, size, value)


# Faults.


def test_a_fault_comes_before_any_device(m: Machined) -> None:
    """The second page of an access is checked before the first one's device, or RAM, is touched."""
    device = Recorder()
    m.machine.mmio.attach(device, PAGE_A, KIB4)
    m.map(PAGE_A)
    for access in (lambda: m.vcpu.load(GVA + 0xFFC, 8), lambda: m.vcpu.store(GVA + 0xFFC, 8, 1)):
        with pytest.raises(PageFault) as caught:
            access()
        assert caught.value.address == GVA + KIB4
    assert device.calls == []
    m.map(0x8000)
    with pytest.raises(PageFault):
        m.vcpu.store(GVA + 0xFFC, 8, 0xFFFF_FFFF_FFFF_FFFF)
    assert m.memory.read(0x8FFC, 4) == bytes(4)


def test_an_access_that_faulted_can_be_made_again(m: Machined) -> None:
    """A fault leaves nothing waiting: with the page mapped the same access goes through."""
    with pytest.raises(PageFault):
        m.vcpu.load(GVA, 4)
    m.map(0x8000)
    m.memory.store(0x8000, 4, 0x1234)
    assert m.vcpu.load(GVA, 4) == 0x1234


def test_the_privilege_level_decides_whose_access_it_is(m: Machined) -> None:
    """SS's DPL of 3 makes `load` a user's, with U/S in the error code; `user=` says otherwise."""
    m.tables.map(GVA, 0x8000, P | W)
    assert m.vcpu.load(GVA, 4) == 0
    with pytest.raises(PageFault) as caught:
        m.vcpu.load(GVA, 4, user=True)
    assert caught.value.error_code == 0b101
    m.page(PE | WP | PG, cpl=3)
    with pytest.raises(PageFault) as caught:
        m.vcpu.store(GVA, 4, 0)
    assert caught.value.error_code == 0b111
    assert m.vcpu.load(GVA, 4, user=False) == 0


def test_smap_and_ac_are_taken_from_the_registers(m: Machined) -> None:
    """CR4.SMAP and EFLAGS.AC decide a supervisor's load of a user page."""
    m.map(0x8000)
    m.page(PE | WP | PG, cr4=SMAP)
    with pytest.raises(PageFault) as caught:
        m.vcpu.load(GVA, 4)
    assert caught.value.error_code == 0b001
    m.page(PE | WP | PG, cr4=SMAP, rflags=2 | 1 << 18)
    assert m.vcpu.load(GVA, 4) == 0


def test_wp_is_taken_from_the_registers(m: Machined) -> None:
    """CR0.WP decides a supervisor's store to a read-only page."""
    m.tables.map(GVA, 0x8000, P | U)
    with pytest.raises(PageFault) as caught:
        m.vcpu.store(GVA, 4, 1)
    assert caught.value.error_code == 0b011
    m.page(PE | PG)
    assert m.vcpu.store(GVA, 4, 1) is None


def test_load_and_store_mark_the_tables(m: Machined) -> None:
    """A load sets accessed, a store dirty, as the guest's own access would."""
    place = m.tables.map(GVA, 0x8000)
    m.vcpu.load(GVA, 4)
    assert m.memory.load(place, 8) & (A | D) == A
    m.vcpu.store(GVA, 4, 0)
    assert m.memory.load(place, 8) & (A | D) == A | D


def test_an_address_that_is_not_canonical(m: Machined) -> None:
    """#GP(0), also where only the end of the access is not canonical."""
    with pytest.raises(ProtectionFault):
        m.vcpu.load(1 << 47, 4)
    m.tables.map((1 << 47) - KIB4, 0x8000)
    with pytest.raises(ProtectionFault):
        m.vcpu.store((1 << 47) - 4, 8, 1)
    assert m.memory.read(0x8FFC, 4) == bytes(4)


def test_without_paging_addresses_wrap_at_4_gib() -> None:
    """Paging off: an access over the end of the 32-bit space continues at 0."""
    machine = Machine(clock=SteppedClock())
    machine.memory.add(0, 0x10000)
    vcpu = machine.vcpus[0]
    machine.mmio.attach(Recorder(0x55), 0xFFFFF000, 0x1000)
    machine.memory.write(0, b"\x11\x22")
    assert vcpu.load(0xFFFFFFFF, 2) == 0x1155


# Without an engine.


def test_run_without_an_engine_says_what_to_do() -> None:
    """`run` of a machine that has no CPU is an error that names the ways out."""
    machine = Machine(clock=SteppedClock())
    with pytest.raises(EngineError, match="this machine has no CPU engine: give Machine one, or drive its buses"):
        machine.vcpus[0].run()
    with pytest.raises(EngineError):
        machine.run()


def test_registers_are_a_copy() -> None:
    """What `registers` gives is the caller's: it acts on the CPU only when it is assigned."""
    vcpu = Machine().vcpus[0]
    registers = vcpu.registers
    assert (registers.rip, registers.cs.base, registers.rflags) == (0xFFF0, 0xFFFF0000, 2)
    registers.rax = 7
    registers.cs.selector = 8
    assert vcpu.registers.rax == 0 and vcpu.registers.cs.selector == 0xF000
    vcpu.registers = registers
    registers.rax = 9
    assert vcpu.registers.rax == 7 and vcpu.registers.cs.selector == 8


@pytest.mark.parametrize(
    ("cr0", "rflags", "dpl", "cpl"), [(0, 2, 3, 0), (PE, 2, 0, 0), (PE, 2, 3, 3), (PE, 1 << 17 | 2, 0, 3)]
)
def test_the_privilege_level(cr0: int, rflags: int, dpl: int, cpl: int) -> None:
    """0 in real mode, 3 in virtual-8086 mode, else SS's DPL (SDM vol. 3A, 5.5 and 21.2)."""
    registers = Registers(cr0=cr0, rflags=rflags)
    registers.ss.access = 0x93 | dpl << 5
    assert registers.cpl == cpl
