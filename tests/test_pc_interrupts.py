"""The PC's interrupts, wired: timers, the 8259s, the I/O APIC and several local APICs, by the guest's own addresses.

No CPU runs: each vCPU's accesses are made for it, and what its LAPIC does to it is written down.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from iobus.clock import SteppedClock
from iobus.devices import hpet as h
from iobus.devices import lapic_registers as r
from iobus.pc.pc import Pc
from iobus.vcpu import NoExecutor

HPET, IOAPIC, LAPIC = 0xFED00000, 0xFEC00000, 0xFEE00000
XAPIC, X2APIC = 0xFEE00800, 0xFEE00C00
ENABLED = 0x1FF
MASKED, LEVEL = 1 << 16, 1 << 15


def each(cpus: Iterable[int], vector: int) -> dict[int, list[int | None]]:
    """What `Board.receivers` gives where each of `cpus` took `vector` once."""
    return {cpu: [vector] for cpu in cpus}


class Cpu(NoExecutor):
    """An executor that runs nothing and writes down what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def nmi(self) -> None:
        self.events.append("nmi")

    def init(self) -> None:
        self.events.append("init")

    def startup(self, vector: int) -> None:
        self.events.append(f"startup {vector:#x}")


class Board:
    """A PC without an engine, and a guest's words on each of its CPUs."""

    def __init__(self, cpus: int = 1, *, x2apic: bool = False) -> None:
        self.clock = SteppedClock()
        self.pc = Pc(None, memory=1 << 20, cpus=cpus, clock=self.clock)
        self.vcpus = self.pc.machine.vcpus
        self.cpus = [Cpu() for _ in range(cpus)]
        for vcpu, cpu, lapic in zip(self.vcpus, self.cpus, self.pc.lapics, strict=True):
            vcpu.executor = cpu
            if x2apic:
                assert lapic.write_msr(r.IA32_APIC_BASE, X2APIC | (0x100 if vcpu.index == 0 else 0))
            self.apic(r.SVR, ENABLED, vcpu.index)

    def apic(self, register: int, value: int, cpu: int = 0) -> None:
        """Write a LAPIC register by the page or the MSR, as the mode is."""
        if self.pc.lapics[cpu].x2apic_mode:
            assert self.pc.lapics[cpu].write_msr(0x800 + (register >> 4), value)
        else:
            self.vcpus[cpu].mmio_path.write(LAPIC + register, 4, value)

    def ipi(self, low: int, destination: int, cpu: int = 0) -> None:
        if self.pc.lapics[cpu].x2apic_mode:
            self.apic(r.ICR_LOW, destination << 32 | low, cpu)
        else:
            self.apic(r.ICR_HIGH, destination << 24, cpu)
            self.apic(r.ICR_LOW, low, cpu)

    def hpet(self, register: int, value: int, timer: int | None = None) -> None:
        base = HPET if timer is None else HPET + 0x100 + 0x20 * timer
        self.vcpus[0].mmio_path.write(base + register, 8, value)

    def ioapic(self, register: int, value: int) -> None:
        self.vcpus[0].mmio_path.write(IOAPIC, 4, register)
        self.vcpus[0].mmio_path.write(IOAPIC + 0x10, 4, value)

    def route(self, pin: int, low: int, destination: int = 0) -> None:
        self.ioapic(0x11 + 2 * pin, destination << 24)
        self.ioapic(0x10 + 2 * pin, low)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.vcpus[0].pio_path.write(port, 1, value)

    def start_pics(self) -> None:
        for port, words in ((0x20, (0x11, 0x30, 4, 1)), (0xA0, (0x11, 0x38, 2, 1))):
            self.out(port, words[0])
            self.out(port + 1, *words[1:])

    def start_pit(self, period: int = 11932) -> None:
        """Counter 0 in mode 2: 100 Hz."""
        self.out(0x43, 0x34)
        self.out(0x40, period & 0xFF, period >> 8)

    def taken(self, cpu: int = 0) -> list[int | None]:
        """The CPU takes and ends all that is pending, also at the 8259s."""
        vectors = []
        lapic = self.pc.lapics[cpu]
        while lapic.pending():
            vectors.append(lapic.acknowledge())
            self.apic(r.EOI, 0, cpu)
            self.out(0xA0, 0x20)
            self.out(0x20, 0x20)
        return vectors

    def receivers(self) -> dict[int, list[int | None]]:
        return {cpu: vectors for cpu in range(len(self.cpus)) if (vectors := self.taken(cpu))}

    def ms(self, number: float) -> None:
        self.clock.advance(int(number * 1_000_000))


# The HPET in place of the 8254 and the RTC.


def test_legacy_replacement_takes_irq_0_from_the_8254_at_the_8259_and_the_io_apic() -> None:
    """HPET spec 2.3.5: timer 0 is IRQ 0 at the 8259 and line 2 at the I/O APIC, and the 8254 is nobody's."""
    board = Board()
    board.pc.lapics[0].virtual_wire()
    board.start_pics()
    board.start_pit()
    board.taken()
    board.ms(10.1)
    assert board.taken() == [0x30]
    board.hpet(h.TIMER_CONFIGURATION, h.INT_ENB_CNF | h.TYPE_CNF | h.VAL_SET_CNF, 0)
    board.hpet(h.TIMER_COMPARATOR, 300_000, 0)  # 3 ms
    board.hpet(h.CONFIGURATION, 3)
    seen = []
    for _ in range(12):
        board.ms(1)
        seen.append(bool(board.taken()))
    assert seen == [number % 3 == 2 for number in range(12)]
    board.out(0x21, 0xFF)
    board.route(2, 0x52)
    board.ms(3)
    assert board.taken() == [0x52]
    board.hpet(h.CONFIGURATION, 0)
    board.taken()
    board.ms(9.9)
    seen = []
    for _ in range(3):
        board.ms(10)
        seen += board.taken()
    assert seen == [0x52] * 3, "the 8254's again, at its rate"


def test_legacy_replacement_takes_irq_8_from_the_rtc() -> None:
    """HPET spec 2.3.5: timer 1 is IRQ 8; the RTC's registers go on, its line is cut off."""
    board = Board()
    board.route(8, 0x58)
    board.out(0x70, 0x0B)
    board.out(0x71, 0x42)  # periodic, 1024 Hz
    board.ms(1)
    assert board.taken() == [0x58]
    board.hpet(h.TIMER_CONFIGURATION, h.INT_ENB_CNF, 1)
    board.hpet(h.TIMER_COMPARATOR, 1_000_000, 1)  # 10 ms
    board.hpet(h.CONFIGURATION, 3)
    board.out(0x70, 0x0C)
    assert board.vcpus[0].pio_path.read(0x71, 1) & 0x40
    board.ms(9)
    assert board.taken() == [] and board.vcpus[0].pio_path.read(0x71, 1) & 0x40
    board.ms(1)
    assert board.taken() == [0x58]


def test_hpet_lines_and_messages_reach_the_cpus() -> None:
    """Timer 2 level-triggered on line 11 of the 8259s and 20 of the I/O APIC; timer 1 as a message to CPU 3."""
    board = Board(4)
    board.route(20, LEVEL | 0x61)
    board.hpet(h.TIMER_CONFIGURATION, h.INT_ENB_CNF | h.INT_TYPE_CNF | 20 << 9, 2)
    board.hpet(h.TIMER_COMPARATOR, 100_000, 2)
    board.hpet(h.TIMER_FSB, 0xFEE03000 << 32 | 0x62, 1)
    board.hpet(h.TIMER_CONFIGURATION, h.INT_ENB_CNF | h.FSB_EN_CNF, 1)
    board.hpet(h.TIMER_COMPARATOR, 200_000, 1)
    board.hpet(h.CONFIGURATION, 1)
    board.ms(1)
    assert board.pc.lapics[0].acknowledge() == 0x61
    board.hpet(h.STATUS, 1 << 2)
    board.apic(r.EOI, 0)
    assert board.receivers() == {}
    board.ms(1)
    assert board.receivers() == {3: [0x62]}
    board.pc.lapics[0].virtual_wire()
    board.start_pics()
    board.out(0x4D1, 0x08)
    board.hpet(h.TIMER_CONFIGURATION, h.INT_ENB_CNF | h.INT_TYPE_CNF | 11 << 9, 2)
    board.hpet(h.TIMER_COMPARATOR, 300_000, 2)
    board.ms(1)
    assert board.pc.lapics[0].acknowledge() == 0x38 + 3


def test_a_reset_gives_the_lines_back() -> None:
    """After a reset of the machine the 8254 drives IRQ 0 again."""
    board = Board()
    board.hpet(h.CONFIGURATION, 3)
    board.pc.reset()
    board.apic(r.SVR, ENABLED)
    board.route(2, 0x52)
    board.start_pit()
    board.ms(25)
    assert board.taken() == [0x52]


def test_pin_2_is_up_while_one_of_its_lines_is() -> None:
    """The timer's line and a line of pin 2 alone are wired together: the end of one is not the end of the other."""
    board = Board()
    own, timer = board.pc.gsi(2), board.pc.gsi(0)
    own.set(True)
    timer.set(True)
    timer.set(False)
    assert board.pc.ioapic.state.levels[2]
    own.set(False)
    assert not board.pc.ioapic.state.levels[2]


# The NMI.


def test_the_nmi_reaches_each_cpu_whose_lint1_lets_it_through() -> None:
    """Port 0x70's bit 7 masks it for all; an NMI held up so comes with the unmasking, an edge that is over is lost."""
    board = Board(3)
    for cpu in (0, 2):
        board.apic(r.LVT_LINT1, 0x400, cpu)
    line = board.pc.nmi("button")
    line.pulse()
    assert [cpu.events for cpu in board.cpus] == [["nmi"], [], ["nmi"]]
    board.out(0x70, 0x80)
    line.pulse()
    board.out(0x70, 0x00)
    assert len(board.cpus[0].events) == 1
    board.out(0x70, 0x80)
    line.set(True)
    assert len(board.cpus[0].events) == 1
    board.out(0x70, 0x00)
    assert len(board.cpus[0].events) == len(board.cpus[2].events) == 2


# IA32_APIC_BASE, as a guest sees it.


def test_a_disabled_lapic_reads_as_all_ones_while_cr8_works() -> None:
    """Section 11.4.3: nobody claims its page, writes to it are in vain; enabled again it is as after a reset."""
    board = Board(2)
    vcpu, lapic = board.vcpus[0], board.pc.lapics[0]
    assert lapic.write_msr(r.IA32_APIC_BASE, 0xFEE00100)
    for offset in range(0, 0x1000, 8):
        vcpu.mmio_path.write(LAPIC + offset, 8, 0xFFFFFFFF_FFFFFFFF)
    for register in (r.VERSION, r.TPR, r.ICR_LOW):
        assert vcpu.mmio_path.read(LAPIC + register, 4) == 0xFFFFFFFF
    lapic.write_cr8(0xA)
    assert lapic.read_cr8() == 0xA and vcpu.mmio_path.read(LAPIC + r.TPR, 4) == 0xFFFFFFFF
    assert board.vcpus[1].mmio_path.read(LAPIC + r.VERSION, 4) == r.VERSION_VALUE, "the other CPU's is its own"
    assert lapic.write_msr(r.IA32_APIC_BASE, 0xFEE00900)
    assert vcpu.mmio_path.read(LAPIC + r.VERSION, 4) == r.VERSION_VALUE
    assert vcpu.mmio_path.read(LAPIC + r.TPR, 4) == 0xA0 and vcpu.mmio_path.read(LAPIC + r.SVR, 4) == 0xFF


@pytest.mark.parametrize("base", [0xFED40000, 0xFEC00000, 0xFED00000, 0x8000, 0xF_FFFF_F000, 0])
def test_a_lapic_moves_anywhere_for_its_own_cpu(base: int) -> None:
    """Section 11.4.5: on nothing, on the I/O APIC, the HPET or RAM, which the other CPU has there as before."""
    board = Board(2)
    before = board.vcpus[1].load(base + r.VERSION, 4) if base < 1 << 32 else None
    assert board.pc.lapics[0].write_msr(r.IA32_APIC_BASE, base | 0x900)
    assert board.vcpus[0].mmio_path.read(base + r.VERSION, 4) == r.VERSION_VALUE
    assert board.vcpus[0].mmio_path.read(LAPIC + r.VERSION, 4) == 0xFFFFFFFF
    assert board.vcpus[1].mmio_path.read(LAPIC + r.VERSION, 4) == r.VERSION_VALUE
    if isinstance(before, int):
        assert board.vcpus[1].mmio_path.read(base + r.VERSION, 4) == before


# IPIs among several CPUs.

EVERY = pytest.mark.parametrize("x2apic", [False, True], ids=["xapic", "x2apic"])


@EVERY
@pytest.mark.parametrize("cpus", [2, 4, 16])
def test_physical_destinations_name_one_cpu_or_all(cpus: int, x2apic: bool) -> None:
    """Each CPU by its ID; all ones are everybody, the sender too; an ID that nobody has is nobody."""
    board = Board(cpus, x2apic=x2apic)
    for cpu in range(cpus):
        board.ipi(0x4051, cpu, cpu=cpus - 1)
        assert board.receivers() == {cpu: [0x51]}
    board.ipi(0x4052, 0xFFFFFFFF if x2apic else 0xFF)
    assert board.receivers() == each(range(cpus), 0x52)
    board.ipi(0x4053, cpus)
    assert board.receivers() == {}


def test_0xff_is_an_id_in_32_bits_and_the_broadcast_in_8() -> None:
    """Section 11.12.9: an x2APIC's destination has 32 bits; an MSI's and an I/O APIC's have 8."""
    board = Board(4, x2apic=True)
    board.ipi(0x4051, 0xFF)
    assert board.receivers() == {}
    assert board.pc.apic_bus.msi(0xFEEFF000, 0x52)
    assert board.receivers() == each(range(4), 0x52)


@EVERY
def test_shorthands(x2apic: bool) -> None:
    """Section 11.6.1: self, all, all but self, whatever the destination says."""
    board = Board(5, x2apic=x2apic)
    for low, expected in ((0x44051, [2]), (0x84051, [0, 1, 2, 3, 4]), (0xC4051, [0, 1, 3, 4])):
        board.ipi(low, 0, cpu=2)
        assert board.receivers() == each(expected, 0x51)


def test_flat_logical_destinations() -> None:
    """Section 11.6.2.2: eight CPUs, a bit each; CPUs beyond have none; 0xFF is everybody."""
    board = Board(10)
    for cpu in range(8):
        board.apic(r.LDR, 1 << cpu << 24, cpu)
    for mask in (0x01, 0x80, 0x55, 0xFE, 0x00):
        board.ipi(0x4851, mask, cpu=9)
        assert board.receivers() == each((cpu for cpu in range(8) if mask >> cpu & 1), 0x51)
    board.ipi(0x4851, 0xFF)
    assert board.receivers() == each(range(10), 0x51)


def test_clustered_logical_destinations() -> None:
    """Section 11.6.2.2: 16 CPUs in four clusters of four; a destination names members of one of them."""
    board = Board(16)
    for cpu in range(16):
        board.apic(r.DFR, 0x0FFFFFFF, cpu)
        board.apic(r.LDR, (cpu // 4 << 4 | 1 << cpu % 4) << 24, cpu)
    for cluster in range(15):
        for members in (0x1, 0x8, 0x6, 0xF):
            board.ipi(0x4851, cluster << 4 | members, cpu=7)
            expected = [cpu for cpu in range(16) if cpu // 4 == cluster and members >> cpu % 4 & 1]
            assert board.receivers() == each(expected, 0x51)
    board.ipi(0x4851, 0xFF)
    assert board.receivers() == each(range(16), 0x51)


def test_x2apic_logical_destinations() -> None:
    """Section 11.12.10.2: clusters of 16 by ID, one in the high half, its members' bits in the low one."""
    board = Board(18, x2apic=True)
    for destination, expected in (
        (0x0000_0001, [0]),
        (0x0000_8421, [0, 5, 10, 15]),
        (0x0000_00FF, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0x0001_0003, [16, 17]),
        (0x0001_0004, []),
        (0x0002_0001, []),
        (0xFFFF_FFFF, list(range(18))),
    ):
        board.ipi(0x4851, destination, cpu=3)
        assert board.receivers() == each(expected, 0x51)


def test_the_io_apic_reaches_x2apic_members_by_their_8_bits() -> None:
    """Four CPUs in x2APIC mode, as a suite with a logical destination of 0xD leaves them: 0, 2 and 3 take it once."""
    board = Board(4, x2apic=True)
    board.route(14, LEVEL | 0x0800 | 0x86, destination=0xD)
    line = board.pc.irq(14)
    line.set(True)
    assert [lapic.pending() for lapic in board.pc.lapics] == [True, False, True, True]
    assert board.pc.lapics[2].acknowledge() == 0x86
    line.set(False)
    board.apic(r.EOI, 0, 2)
    assert board.receivers() == {0: [0x86], 3: [0x86]}


@EVERY
def test_lowest_priority_is_taken_by_one(x2apic: bool) -> None:
    """Section 11.6.2.4: the lowest processor priority of those addressed; equals take turns; none masked off."""
    board = Board(4, x2apic=x2apic)
    everyone = 0xF
    if not x2apic:
        for cpu in range(4):
            board.apic(r.LDR, 1 << cpu << 24, cpu)
    for cpu, priority in enumerate((0x30, 0x10, 0x20, 0x10)):
        board.apic(r.TPR, priority, cpu)
    winners = []
    for _ in range(4):
        board.ipi(0x4951, everyone)
        (winner,) = board.receivers()
        winners.append(winner)
    assert winners == [3, 1, 3, 1]
    board.apic(r.SVR, 0xFF, 1)
    board.apic(r.SVR, 0xFF, 3)
    board.ipi(0x4951, everyone)
    assert list(board.receivers()) == [2]


def test_the_focus_processor_gets_a_lowest_priority_interrupt() -> None:
    """Section 11.6.2.4: who has it waiting or in service takes it, however busy; SVR's bit 9 ends that."""
    board = Board(3)
    for cpu in range(3):
        board.apic(r.LDR, 1 << cpu << 24, cpu)
    board.ipi(0x4051, 1)
    board.ipi(0x4951, 0b111)
    assert board.receivers() == {1: [0x51]}, "waiting there already: the second is the first"
    board.ipi(0x4051, 1)
    assert board.pc.lapics[1].acknowledge() == 0x51
    board.ipi(0x4951, 0b111)
    assert board.pc.lapics[1].state.irr >> 0x51 & 1
    board.apic(r.EOI, 0, 1)
    assert board.pc.lapics[1].acknowledge() == 0x51
    board.apic(r.SVR, ENABLED | 0x200, 1)
    board.ipi(0x4951, 0b111)
    assert not board.pc.lapics[1].state.irr and list(board.receivers()) == [2]


@EVERY
def test_init_and_start_up_reach_the_vcpus(x2apic: bool) -> None:
    """The universal start-up algorithm: INIT, its de-assert, two start-ups to all but the sender; then one alone."""
    board = Board(4, x2apic=x2apic)
    for low in (0xC4500, 0xC8500, 0xC4608, 0xC4608):
        board.ipi(low, 0)
    assert [cpu.events for cpu in board.cpus] == [[], *[["init", "startup 0x8", "startup 0x8"]] * 3]
    assert all(lapic.x2apic_mode is x2apic for lapic in board.pc.lapics), "INIT does not change the mode"
    board.ipi(0x4500, 2)
    board.ipi(0x469A, 2)
    assert board.cpus[2].events[3:] == ["init", "startup 0x9a"] and len(board.cpus[1].events) == 3


@EVERY
def test_nmi_to_all_others_and_to_itself(x2apic: bool) -> None:
    """Delivery mode 4 goes past masks and priorities, to software-disabled LAPICs too."""
    board = Board(3, x2apic=x2apic)
    board.apic(r.TPR, 0xFF, 1)
    board.apic(r.SVR, 0xFF, 2)
    board.ipi(0xC4400, 0)
    board.ipi(0x4400, 0)
    assert [cpu.events for cpu in board.cpus] == [["nmi"]] * 3


def test_the_init_level_de_assert_reloads_the_arbitration_ids() -> None:
    """Section 11.4.7.4: it reaches all, whatever its destination, and nobody is reset by it."""
    board = Board(4)
    for index in range(4):
        board.apic(r.LDR, 1 << index << 24, index)
    for _ in range(3):
        board.ipi(0x4951, 0xF)
        board.receivers()
    turns = [lapic.arbitration_id for lapic in board.pc.lapics]
    assert turns == [3, 0, 1, 2]
    board.ipi(0xC4500, 0)
    assert [lapic.arbitration_id for lapic in board.pc.lapics] == turns, "INIT keeps them"
    for cpu in board.cpus:
        cpu.events.clear()
    board.ipi(0x8500, 2)
    assert [lapic.arbitration_id for lapic in board.pc.lapics] == [0, 1, 2, 3]
    assert all(cpu.events == [] for cpu in board.cpus)


def test_an_extint_message_may_go_to_any_cpu() -> None:
    """The INTA cycle is the CPU's that takes it: there is one pair of 8259s for all."""
    board = Board(2)
    board.start_pics()
    board.apic(r.LVT_LINT0, MASKED)
    board.route(5, 0x700, destination=1)
    line = board.pc.irq(5)
    line.set(True)
    assert board.receivers() == {1: [0x35]}


def test_a_deasserted_level_message_interrupts_nobody() -> None:
    """SDM 11.11.2: trigger level, bit 14 clear; with bit 14 it is an interrupt whose EOI is broadcast."""
    board = Board()
    board.pc.apic_bus.msi(0xFEE00000, 0x8051)
    assert board.receivers() == {}
    board.pc.apic_bus.msi(0xFEE00000, 0xC051)
    assert board.receivers() == {0: [0x51]}
