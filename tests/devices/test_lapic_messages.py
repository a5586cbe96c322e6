"""The local APIC's ways in and out: LINT pins, IPIs and their destinations, errors (SDM vol. 3A, chapter 11)."""

from __future__ import annotations

import pytest
from apic_rig import Rig

from iobus.devices import lapic_registers as r
from iobus.devices.lapic_registers import LVT_MASKED as MASKED
from iobus.irq import DeliveryMode, Message

EXTINT = 0x700


# LINT pins and the 8259.


def test_virtual_wire_passes_the_8259_and_the_nmi() -> None:
    """Virtual wire mode: LINT0 as ExtINT follows the 8259's INTR, whatever TPR says; the vector is INTA's."""
    rig = Rig()
    rig.put(r.TPR, 0xFF)
    rig.pic.vectors = [0x08]
    rig.lapic.lint0(True)
    assert rig.lapic.pending() and rig.cpu.interrupts
    assert rig.lapic.acknowledge() == 0x08
    assert all(rig.get(r.ISR + 16 * word) == 0 for word in range(8))
    rig.lapic.lint0(False)
    assert not rig.lapic.pending()
    rig.lapic.lint1(True)
    assert rig.cpu.events == ["nmi"]


def test_power_up_and_masked_lint0_stop_the_8259() -> None:
    """Enabled but not programmed, the LVT is masked and INTR goes nowhere."""
    rig = Rig(wired=False)
    rig.lapic.lint0(True)
    assert not rig.lapic.pending()
    rig.lapic.virtual_wire()
    assert rig.lapic.pending()
    rig.put(r.LVT_LINT0, MASKED | EXTINT)
    assert not rig.lapic.pending()


def test_disabled_lint0_is_intr_and_lint1_is_nmi() -> None:
    """Section 11.4.3: the pins are a CPU's without an APIC."""
    rig = Rig(wired=False)
    rig.lapic.write_msr(r.IA32_APIC_BASE, 0xFEE00000)
    rig.pic.vectors = [0x70]
    rig.lapic.lint0(True)
    assert rig.lapic.pending() and rig.lapic.acknowledge() == 0x70
    rig.lapic.lint1(True)
    rig.lapic.lint1(False)
    assert rig.cpu.events == ["nmi"]


def test_the_8259_comes_before_the_apics_own_interrupts() -> None:
    """An ExtINT does not take part in the APIC's priorities; both are delivered."""
    rig = Rig()
    rig.fixed(0xF0)
    rig.pic.vectors = [0x08]
    rig.lapic.lint0(True)
    assert rig.lapic.acknowledge() == 0x08
    rig.lapic.lint0(False)
    assert rig.lapic.acknowledge() == 0xF0


def test_an_extint_message_runs_one_inta_cycle() -> None:
    """Section 11.6.1's mode 7, from an IOAPIC: the 8259 names the vector."""
    rig = Rig()
    rig.pic.vectors = [0x0B]
    assert rig.apic_bus.send(Message(0, False, DeliveryMode.EXTINT, 0))
    assert rig.lapic.pending() and rig.lapic.acknowledge() == 0x0B
    assert not rig.lapic.pending()


@pytest.mark.parametrize("polarity", [0, 0x2000])
def test_fixed_lint0_edge(polarity: int) -> None:
    """Section 11.5.1: one interrupt each time the pin is asserted, whatever polarity the guest takes that for."""
    rig = Rig()
    rig.put(r.LVT_LINT0, polarity | 0x45)
    assert rig.get(r.LVT_LINT0) == polarity | 0x45 and rig.taken() == []
    rig.lapic.lint0(True)
    assert rig.taken() == [0x45]
    rig.lapic.lint0(False)
    assert rig.taken() == []
    rig.lapic.lint0(True)
    assert rig.taken() == [0x45] and rig.eois == []


def test_fixed_lint0_level_has_a_remote_irr() -> None:
    """Section 11.5.1: set on acceptance, cleared by EOI, and requested again while the pin is asserted."""
    rig = Rig()
    rig.put(r.LVT_LINT0, 0x8045)
    rig.lapic.lint0(True)
    assert rig.get(r.LVT_LINT0) == 0xC045
    assert rig.lapic.acknowledge() == 0x45 and not rig.lapic.pending()
    rig.put(r.EOI, 0)
    assert rig.lapic.acknowledge() == 0x45
    rig.lapic.lint0(False)
    assert rig.get(r.LVT_LINT0) == 0xC045
    rig.put(r.EOI, 0)
    assert not rig.lapic.pending() and rig.get(r.LVT_LINT0) == 0x8045


def test_unmasking_a_level_lint0_that_is_asserted_delivers() -> None:
    rig = Rig()
    rig.put(r.LVT_LINT0, MASKED | 0x8045)
    rig.lapic.lint0(True)
    assert not rig.lapic.pending()
    rig.put(r.LVT_LINT0, 0x8045)
    assert rig.lapic.pending()


def test_lint1_delivers_init() -> None:
    """Mode 5 on a pin resets the CPU and the LAPIC."""
    rig = Rig()
    rig.put(r.LVT_LINT1, 0x500)
    rig.lapic.lint1(True)
    assert rig.cpu.events == ["init"] and rig.get(r.SVR) == 0xFF


# IPIs and destinations.


def test_ipi_to_one_cpu_by_its_id() -> None:
    """Section 11.6.1: no shorthand, physical; the ICR reads back, idle."""
    rig = Rig(3)
    rig.ipi(0x40F1, 2)
    assert rig.receivers() == [2]
    assert rig.get(r.ICR_LOW) == 0x40F1 and rig.get(r.ICR_HIGH) == 2 << 24


@pytest.mark.parametrize(
    ("low", "destination", "receivers"),
    [
        (0x000440F1, 9, [1]),
        (0x000840F1, 9, [0, 1, 2]),
        (0x000C40F1, 9, [0, 2]),
        (0x000000F1, 0xFF, [0, 1, 2]),
        (0x000008F1, 0xFF, [0, 1, 2]),
    ],
    ids=["self", "all", "others", "physical broadcast", "logical broadcast"],
)
def test_shorthands_and_broadcasts(low: int, destination: int, receivers: list[int]) -> None:
    """Section 11.6.1: a shorthand ignores the destination; 0xFF addresses all. Sent by CPU 1."""
    rig = Rig(3)
    rig.ipi(low, destination, cpu=1)
    assert rig.receivers() == receivers


def test_flat_logical_destinations_are_bit_masks() -> None:
    """Section 11.6.2.2: any bit in common; a LAPIC without a logical ID is not addressed."""
    rig = Rig(4)
    for cpu in range(3):
        rig.put(r.LDR, 1 << cpu << 24, cpu)
    rig.ipi(0x08F1, 0b1101)
    assert rig.receivers() == [0, 2]


def test_cluster_logical_destinations() -> None:
    """Section 11.6.2.2: high nibble names the cluster, low nibble its members."""
    rig = Rig(4)
    for cpu, logical in enumerate((0x11, 0x12, 0x21, 0x14)):
        rig.put(r.DFR, 0x0FFFFFFF, cpu)
        rig.put(r.LDR, logical << 24, cpu)
    rig.ipi(0x08F1, 0x1A)
    assert rig.receivers() == [1]
    rig.ipi(0x08F1, 0x15)
    assert rig.receivers() == [0, 3]
    rig.ipi(0x08F1, 0x2F)
    assert rig.receivers() == [2]
    rig.ipi(0x08F1, 0xFF)
    assert rig.receivers() == [0, 1, 2, 3]


def test_lapics_with_the_same_id_are_both_addressed() -> None:
    """The xAPIC ID is writable, and a destination goes to all that have it."""
    rig = Rig(2)
    rig.put(r.ID, 0)
    rig.put(r.ID, 0, 1)
    rig.ipi(0xF1, 0)
    assert rig.receivers() == [0, 1]


def test_lowest_priority_goes_to_the_lowest_that_can_take_it() -> None:
    """Section 11.6.2.4: by processor priority, among the enabled ones addressed."""
    rig = Rig(3)
    for cpu, tpr in enumerate((0x40, 0x20, 0x10)):
        rig.put(r.TPR, tpr, cpu)
        rig.put(r.LDR, 1 << cpu << 24, cpu)
    rig.put(r.SVR, 0xFF, 2)
    rig.ipi(0x09F1, 0b111)
    assert rig.receivers() == [1]


def test_nmi_and_start_up_sequence() -> None:
    """INIT, INIT level de-assert (ignored since the Pentium 4), start-up to all others; then an NMI."""
    rig = Rig(2)
    rig.ipi(0x000C4500)
    rig.ipi(0x000C8500)
    rig.ipi(0x000C4612)
    rig.ipi(0x400, 1)
    assert rig.cpus[1].events == ["init", "startup 0x12", "nmi"] and rig.cpu.events == []


@pytest.mark.parametrize("low", [0x00084500, 0x00044612, 0x00044200, 0x4700, 0x4300], ids=hex)
def test_what_an_icr_cannot_send_is_not_sent(low: int) -> None:
    """Table 11-3: no INIT, start-up or SMI to oneself by shorthand; modes 3 and 7 are reserved."""
    rig = Rig(2)
    rig.ipi(low)
    assert all(not cpu.events and not cpu.interrupts for cpu in rig.cpus)


# Errors.


def test_esr_shows_errors_only_after_a_write() -> None:
    """Section 11.5.3: a write latches what was detected since the last one, and forgets it."""
    rig = Rig()
    rig.fixed(0x0F)
    assert rig.get(r.ESR) == 0 and not rig.lapic.pending()
    rig.put(r.ESR, 0)
    assert rig.get(r.ESR) == 0x40 and rig.get(r.IRR) == 0
    rig.put(r.ESR, 0)
    assert rig.get(r.ESR) == 0


def test_an_illegal_vector_is_an_error_of_sender_and_receiver() -> None:
    """Section 11.5.3, bits 5 and 6."""
    rig = Rig(2)
    rig.ipi(0x4003, 1)
    for cpu, bit in ((0, 0x20), (1, 0x40)):
        rig.put(r.ESR, 0, cpu)
        assert rig.get(r.ESR, cpu) == bit
    assert rig.receivers() == []


def test_the_error_interrupt_comes_once_until_esr_is_written() -> None:
    """Section 11.5.3: the write arms it anew."""
    rig = Rig()
    rig.put(r.LVT_ERROR, 0xFE)
    rig.fixed(1)
    assert rig.taken() == [0xFE]
    rig.get(0)
    assert rig.taken() == []
    rig.put(r.ESR, 0)
    assert rig.get(r.ESR) == 0xC0
    rig.fixed(1)
    assert rig.taken() == [0xFE]


def test_an_illegal_vector_in_the_error_entry_itself_ends() -> None:
    """An error interrupt that cannot be is one more error, not a loop."""
    rig = Rig()
    rig.put(r.LVT_ERROR, 0x05)
    rig.get(0)
    rig.put(r.ESR, 0)
    assert rig.get(r.ESR) == 0xC0
