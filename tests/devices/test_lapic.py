"""The local APIC in xAPIC mode: registers, priorities, enabling and disabling, state (SDM vol. 3A, chapter 11)."""

from __future__ import annotations

import pytest
from apic_rig import Cpu, Rig
from hypothesis import given
from hypothesis import strategies as st

from iobus.clock import SteppedClock
from iobus.devices import lapic_registers as r
from iobus.devices.lapic import Lapic
from iobus.irq import ApicBus, DeliveryMode, Message
from iobus.state import StateError

MASKED = 1 << 16


# The register page.


def test_power_up_state() -> None:
    """Section 11.4.7.1: software-disabled, LVT masked, DFR all ones, SVR 0xFF, the rest zero."""
    rig = Rig(2, wired=False)
    assert rig.get(r.ID, 1) == 1 << 24
    for register in r.LVT_WRITABLE:
        assert rig.get(register) == MASKED
    assert rig.get(r.SVR) == 0xFF
    assert rig.get(r.DFR) == 0xFFFFFFFF
    for register in (r.TPR, r.PPR, r.LDR, r.ESR, r.ICR_LOW, r.ICR_HIGH, r.INITIAL_COUNT, r.CURRENT_COUNT):
        assert rig.get(register) == 0
    for register in range(r.ISR, r.ESR, 0x10):
        assert rig.get(register) == 0


def test_version_tells_an_integrated_apic_with_six_lvt_entries() -> None:
    """Section 11.4.8: version 0x10-0x15 is integrated; bits 16-23 hold the number of entries less one."""
    rig = Rig()
    rig.put(r.VERSION, 0)
    assert 0x10 <= rig.get(r.VERSION) & 0xFF <= 0x15
    assert rig.get(r.VERSION) >> 16 & 0xFF == 5


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (r.ID, 0xFF000000),
        (r.TPR, 0xFF),
        (r.LDR, 0xFF000000),
        (r.DFR, 0xFFFFFFFF),
        (r.SVR, 0x13FF),
        (r.LVT_TIMER, 0x000700FF),
        (r.LVT_THERMAL, 0x000107FF),
        (r.LVT_PERFORMANCE, 0x000107FF),
        (r.LVT_LINT0, 0x0001A7FF),
        (r.LVT_LINT1, 0x0001A7FF),
        (r.LVT_ERROR, 0x000100FF),
        (r.ICR_HIGH, 0xFF000000),
        (r.DIVIDE_CONFIGURATION, 0xB),
    ],
)
def test_only_a_registers_own_bits_can_be_set(register: int, value: int) -> None:
    """Reserved and read-only bits stay zero whatever is written."""
    rig = Rig()
    rig.put(register, 0xFFFFFFFF)
    assert rig.get(register) == value


def test_dfr_keeps_its_low_28_bits_set() -> None:
    """Section 11.6.2.2: only the model, bits 28-31, can be written."""
    rig = Rig()
    rig.put(r.DFR, 0)
    assert rig.get(r.DFR) == 0x0FFFFFFF


def test_narrow_reads_give_the_registers_bytes_and_nothing_beyond() -> None:
    """What the manual leaves undefined is harmless: bytes within the register, zero beyond its four."""
    rig = Rig()
    version = rig.get(r.VERSION)
    assert [rig.lapic.read(r.VERSION + at, 1) for at in range(16)] == [*version.to_bytes(4, "little"), *[0] * 12]
    assert rig.lapic.read(r.VERSION + 2, 2) == version >> 16
    assert rig.lapic.read(r.VERSION + 2, 4) == 0
    assert rig.lapic.read(r.VERSION, 8) == version


def test_narrow_and_unaligned_writes_do_nothing_and_wide_ones_act_on_the_register() -> None:
    """The same for writes: only 4 and 8 bytes at the register's own offset count."""
    rig = Rig()
    rig.put(r.TPR, 0x50)
    rig.lapic.write(r.TPR, 1, 0x20)
    rig.lapic.write(r.TPR, 2, 0x20)
    rig.lapic.write(r.TPR + 4, 4, 0x20)
    assert rig.get(r.TPR) == 0x50
    rig.lapic.write(r.TPR, 8, 0xFFFFFFFF_00000020)
    assert rig.get(r.TPR) == 0x20


@pytest.mark.parametrize("offset", [0x000, 0x040, 0x2F0, 0x3A0, 0x3F0, 0x400, 0xFF0])
def test_a_reserved_register_sets_illegal_register_address(offset: int) -> None:
    """Section 11.5.3: bit 7, for reads and for writes; CMCI and SELF IPI do not exist here."""
    rig = Rig()
    assert rig.get(offset) == 0
    rig.put(r.ESR, 0)
    assert rig.get(r.ESR) == 0x80
    rig.put(r.ESR, 0)
    rig.put(offset, 1)
    rig.put(r.ESR, 0)
    assert rig.get(r.ESR) == 0x80


def test_read_only_and_write_only_registers_are_no_errors() -> None:
    """Writing PPR, reading EOI or touching the retired APR and RRD records nothing (table 11-1)."""
    rig = Rig()
    for register in (r.PPR, r.APR, r.RRD, r.ISR, r.CURRENT_COUNT):
        rig.put(register, 0xFF)
    assert rig.get(r.EOI) == rig.get(r.RRD) == rig.get(r.APR) == 0
    rig.put(r.ESR, 0)
    assert rig.get(r.ESR) == 0


# Acceptance and priority.


def test_an_interrupt_goes_from_irr_to_isr_to_end() -> None:
    """Section 11.8.4: accepted into IRR, dispensed into ISR, taken out by EOI."""
    rig = Rig()
    rig.fixed(0x51)
    assert rig.get(r.IRR + 0x20) == 1 << 0x11 and rig.lapic.pending() and rig.cpu.interrupts
    assert rig.lapic.acknowledge() == 0x51
    assert rig.get(r.IRR + 0x20) == 0 and rig.get(r.ISR + 0x20) == 1 << 0x11
    assert rig.get(r.PPR) == 0x50
    rig.put(r.EOI, 0)
    assert rig.get(r.ISR + 0x20) == 0 and rig.get(r.PPR) == 0


def test_higher_vectors_are_taken_first() -> None:
    """Section 11.8.3: priority is the vector's."""
    rig = Rig()
    for vector in (0x31, 0xF0, 0x32, 0x80):
        rig.fixed(vector)
    assert rig.taken() == [0xF0, 0x80, 0x32, 0x31]


def test_a_class_in_service_holds_back_its_own_class_and_lower() -> None:
    """Section 11.8.3.1: only a higher class, not a higher vector of the same class, interrupts a handler."""
    rig = Rig()
    rig.fixed(0x61)
    assert rig.lapic.acknowledge() == 0x61
    rig.fixed(0x6F)
    rig.fixed(0x42)
    assert not rig.lapic.pending() and rig.lapic.acknowledge() is None
    rig.fixed(0x70)
    assert rig.lapic.acknowledge() == 0x70
    rig.put(r.EOI, 0)
    assert not rig.lapic.pending()
    before = rig.cpu.interrupts
    rig.put(r.EOI, 0)
    assert rig.lapic.pending() and rig.cpu.interrupts > before
    assert rig.taken() == [0x6F, 0x42]


def test_tpr_holds_back_its_class_and_lower_until_it_is_lowered() -> None:
    """Section 11.8.3.1: a class must be above the task priority's; lowering it tells the CPU."""
    rig = Rig()
    rig.put(r.TPR, 0x45)
    rig.fixed(0x4F)
    assert not rig.lapic.pending() and rig.cpu.interrupts == 0
    assert rig.get(r.PPR) == 0x45
    rig.put(r.TPR, 0x3F)
    assert rig.lapic.pending() and rig.cpu.interrupts == 1


def test_cr8_is_tprs_class() -> None:
    """Section 11.8.6: CR8[3:0] is TPR[7:4]; a write clears the subclass."""
    rig = Rig()
    rig.put(r.TPR, 0x9C)
    assert rig.lapic.read_cr8() == 9
    rig.lapic.write_cr8(0xF)
    assert rig.get(r.TPR) == 0xF0
    rig.fixed(0xFE)
    assert not rig.lapic.pending()
    rig.lapic.write_cr8(0xE)
    assert rig.lapic.pending()


def test_ppr_takes_tprs_subclass_only_with_tprs_class() -> None:
    """Section 11.8.3.1, the formula of PPR."""
    rig = Rig()
    rig.fixed(0x63)
    rig.lapic.acknowledge()
    assert rig.get(r.PPR) == 0x60
    rig.put(r.TPR, 0x57)
    assert rig.get(r.PPR) == 0x60
    rig.put(r.TPR, 0x77)
    assert rig.get(r.PPR) == 0x77


def test_apr_counts_what_is_requested() -> None:
    """Section 11.6.2.4: TPR while that is highest, else the requested class."""
    rig = Rig()
    rig.put(r.TPR, 0x45)
    assert rig.get(r.APR) == 0x45
    rig.fixed(0x81)
    assert rig.get(r.APR) == 0x80


def test_one_request_of_a_vector_waits_while_another_is_served() -> None:
    """Section 11.8.4: IRR and ISR hold one each of a vector; a third is lost."""
    rig = Rig()
    rig.fixed(0x50)
    rig.lapic.acknowledge()
    rig.fixed(0x50)
    rig.fixed(0x50)
    rig.put(r.EOI, 0)
    assert rig.taken() == [0x50]


def test_tmr_follows_each_acceptance_and_only_level_eois_are_broadcast() -> None:
    """Section 11.8.4: set for level, cleared for edge; section 11.8.5: EOI goes on for level."""
    rig = Rig()
    rig.fixed(0x50, level=True)
    assert rig.get(r.TMR + 0x20) == 1 << 0x10
    assert rig.taken() == [0x50] and rig.eois == [0x50]
    rig.fixed(0x50)
    assert rig.get(r.TMR + 0x20) == 0
    assert rig.taken() == [0x50] and rig.eois == [0x50]


def test_eoi_broadcasts_can_be_suppressed() -> None:
    """Section 11.8.5: SVR bit 12, which version bit 24 offers."""
    rig = Rig()
    assert rig.get(r.VERSION) & 1 << 24
    rig.put(r.SVR, 0x11FF)
    rig.fixed(0x50, level=True)
    assert rig.taken() == [0x50] and rig.eois == []


def test_eoi_with_nothing_in_service_is_nothing() -> None:
    rig = Rig()
    rig.put(r.EOI, 0)
    assert rig.eois == [] and not rig.lapic.pending()


# Enabling and disabling.


def test_software_disable_masks_the_lvt_and_refuses_unmasking() -> None:
    """Section 11.4.7.2: mask bits are set and writes cannot clear them."""
    rig = Rig()
    for register in r.LVT_WRITABLE:
        rig.put(register, 0x40)
    rig.put(r.SVR, 0xFF)
    for register in r.LVT_WRITABLE:
        assert rig.get(register) == MASKED | 0x40
        rig.put(register, 0x41)
        assert rig.get(register) == MASKED | 0x41


def test_software_disabled_it_takes_nmi_init_and_startup_but_no_fixed_interrupt() -> None:
    """Section 11.4.7.2; what was accepted before is held for the CPU, and it can still send."""
    rig = Rig(2)
    rig.fixed(0x50)
    rig.put(r.SVR, 0xFF)
    assert not rig.fixed(0x90)
    assert rig.taken() == [0x50]
    for mode in (DeliveryMode.NMI, DeliveryMode.INIT, DeliveryMode.STARTUP):
        assert rig.apic_bus.send(Message(0, False, mode, 0x9A))
    assert rig.cpu.events == ["nmi", "init", "startup 0x9a"]
    rig.ipi(0x4061, 1)
    assert rig.lapics[1].acknowledge() == 0x61


def test_init_keeps_id_and_base() -> None:
    """Section 11.4.7.3: power-up state otherwise, before the CPU hears of it."""
    rig = Rig(2)
    rig.put(r.ID, 0x07000000)
    rig.put(r.TPR, 0x20)
    rig.fixed(0x90, destination=7)
    assert rig.lapic.write_msr(r.IA32_APIC_BASE, 0xD0000900)
    rig.ipi(0x4500, 7, cpu=1)
    assert rig.cpu.events == ["init"] and not rig.lapic.pending()
    assert rig.get(r.ID) == 0x07000000 and rig.get(r.TPR) == 0 and rig.get(r.SVR) == 0xFF
    assert rig.lapic.read_msr(r.IA32_APIC_BASE) == 0xD0000900


def test_reset_returns_to_power_up_but_the_pins_keep_their_levels() -> None:
    """What drives LINT0 still drives it after a reset of the LAPIC."""
    rig = Rig()
    rig.lapic.write_msr(r.IA32_APIC_BASE, 0xD0000000)
    rig.lapic.lint0(True)
    rig.lapic.reset()
    assert rig.lapic.read_msr(r.IA32_APIC_BASE) == 0xFEE00900
    assert rig.bus.read(0xFEE00030, 4) == r.VERSION_VALUE
    assert not rig.lapic.pending()
    rig.lapic.virtual_wire()
    assert rig.lapic.pending()


# IA32_APIC_BASE.


def test_the_bsp_flag_is_the_hardwares() -> None:
    """Section 11.4.4: set in the bootstrap processor only; writing does not move it."""
    rig = Rig(2)
    assert rig.lapic.read_msr(r.IA32_APIC_BASE) == 0xFEE00900
    assert rig.lapics[1].read_msr(r.IA32_APIC_BASE) == 0xFEE00800
    assert rig.lapic.write_msr(r.IA32_APIC_BASE, 0xFEE00800)
    assert rig.lapics[1].write_msr(r.IA32_APIC_BASE, 0xFEE00900)
    assert rig.lapic.read_msr(r.IA32_APIC_BASE) == 0xFEE00900
    assert rig.lapics[1].read_msr(r.IA32_APIC_BASE) == 0xFEE00800


def test_the_page_moves_with_the_base() -> None:
    """Section 11.4.5: relocation; the bus answers at the new place and no more at the old."""
    rig = Rig()
    assert rig.bus.read(0xFEE00030, 4) == r.VERSION_VALUE
    assert rig.lapic.write_msr(r.IA32_APIC_BASE, 0xFED40900)
    assert rig.bus.read(0xFED40030, 4) == r.VERSION_VALUE
    assert rig.bus.read(0xFEE00030, 4) is NotImplemented


def test_disabled_the_page_is_gone_cr8_works_and_enabling_starts_afresh() -> None:
    """Section 11.4.3: as if there were no APIC; its state, but TPR, is lost."""
    rig = Rig()
    rig.put(r.ID, 0x09000000)
    rig.put(r.TPR, 0x30)
    rig.fixed(0x50, destination=9)
    assert rig.lapic.write_msr(r.IA32_APIC_BASE, 0xFEE00100)
    assert rig.lapic.read_cr8() == 3
    assert rig.bus.read(0xFEE00030, 4) is NotImplemented
    assert not rig.lapic.enabled and not rig.lapic.pending() and not rig.fixed(0x60)
    rig.lapic.write_cr8(0xF)
    assert rig.lapic.read_cr8() == 0xF
    assert rig.lapic.write_msr(r.IA32_APIC_BASE, 0xFEE00900)
    assert rig.lapic.enabled and rig.bus.read(0xFEE00080, 4) == 0xF0
    assert rig.get(r.ID) == 0 and rig.get(r.SVR) == 0xFF and rig.get(r.LVT_LINT0) == MASKED


@pytest.mark.parametrize("value", [0xFEE00901, 0xFEE00B00, 1 << 40 | 0xFEE00900, 1 << 63 | 0xFEE00900, 0xFEE00D00])
def test_reserved_bits_of_the_base_fault(value: int) -> None:
    """#GP for reserved bits, those above the physical address width, and EXTD where there is no x2APIC."""
    rig = Rig()
    assert not rig.lapic.write_msr(r.IA32_APIC_BASE, value)
    assert rig.lapic.read_msr(r.IA32_APIC_BASE) == 0xFEE00900
    assert rig.lapic.write_msr(r.IA32_APIC_BASE, 1 << 39 | 0x900)


# State.


def test_an_id_without_room_is_refused() -> None:
    """0xFF is the broadcast in 8 bits, so it is nobody's; without x2APIC there is none above it."""
    for apic_id, x2apic in ((0xFF, False), (0xFF, True), (0x100, False), (-1, True), (0xFFFFFFFF, True)):
        with pytest.raises(ValueError, match=f"APIC ID {apic_id:#x}: an ID is from 0 to"):
            Lapic(apic_id, Cpu(), ApicBus(), SteppedClock(), bsp=False, x2apic=x2apic)


def test_a_saved_base_that_cannot_be_is_refused() -> None:
    """Saved data may come from anywhere; the LAPIC stays as it was."""
    rig = Rig()
    plain = rig.lapic.save()
    plain["apic_base"] = 1 << 60
    with pytest.raises(StateError, match="0x1000000000000000"):
        rig.lapic.restore(plain)
    assert rig.lapic.read_msr(r.IA32_APIC_BASE) == 0xFEE00900


def test_restore_brings_pending_timer_and_page_with_it() -> None:
    """A fresh LAPIC goes on where the saved one stood."""
    rig, other = Rig(), Rig(wired=False)
    rig.fixed(0x50)
    rig.put(r.LVT_TIMER, 0x60)
    rig.put(r.INITIAL_COUNT, 1000)
    rig.lapic.write_msr(r.IA32_APIC_BASE, 0xD0000900)
    other.lapic.restore(rig.lapic.save())
    assert other.bus.read(0xD0000030, 4) == r.VERSION_VALUE
    assert other.cpu.interrupts and other.taken() == [0x50]
    other.clock.advance(2000)
    assert other.taken() == [0x60]


INDICES = st.one_of(st.integers(0x800, 0x8FF), st.sampled_from((r.IA32_APIC_BASE, r.IA32_TSC_DEADLINE)))
VALUES = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0x7FFFF),
    st.sampled_from([0, 0xFEE00900, 0xFEE00D00, 0xFEE00100, 0xC4500, 0x840F1, 0x1FF, 0x8045]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 0xFF8), st.sampled_from((1, 2, 4, 8))),
        st.tuples(st.just("write"), st.integers(0, 0xFF).map(lambda n: n << 4), st.sampled_from((1, 2, 4, 8)), VALUES),
        st.tuples(st.just("write"), st.sampled_from(sorted(r.LVT_WRITABLE)), st.just(4), VALUES),
        st.tuples(st.just("rdmsr"), INDICES),
        st.tuples(st.just("wrmsr"), INDICES, VALUES),
        st.tuples(st.just("lint0"), st.booleans()),
        st.tuples(st.just("lint1"), st.booleans()),
        st.tuples(st.just("message"), st.sampled_from(list(DeliveryMode)), st.integers(0, 255), st.booleans()),
        st.tuples(st.just("acknowledge")),
        st.tuples(st.just("advance"), st.integers(0, 1_000_000)),
    ),
    max_size=30,
)


@given(STEPS, st.booleans())
def test_no_sequence_of_accesses_raises_and_the_state_is_complete(steps: list[tuple], x2apic: bool) -> None:
    """Any accesses: nothing raises, values fit, vectors are legal, and a restored LAPIC saves the same."""
    rig = Rig(2, x2apic=x2apic)
    rig.pic.vectors = [0x08] * len(steps)
    lapic = rig.lapic
    for what, *args in steps:
        if what == "read":
            assert 0 <= lapic.read(*args) < 1 << 8 * args[1]
        elif what == "write":
            lapic.write(args[0], args[1], args[2] & (1 << 8 * args[1]) - 1)
        elif what == "rdmsr":
            value = lapic.read_msr(*args)
            assert value is None or 0 <= value < 1 << 64
        elif what == "wrmsr":
            lapic.write_msr(*args)
        elif what == "message":
            mode, vector, level = args
            rig.apic_bus.send(Message(0, False, mode, vector, level))
        elif what == "acknowledge":
            pending = lapic.pending()
            vector = lapic.acknowledge()
            assert (vector is None) == (not pending) and vector in (None, 0x08, *range(16, 256))
        elif what == "advance":
            rig.clock.advance(*args)
        else:
            getattr(lapic, what)(*args)
    other = Rig(2, x2apic=x2apic, wired=False)
    other.lapic.restore(lapic.save())
    assert other.lapic.save() == lapic.save()
    assert other.lapic.pending() == lapic.pending()
