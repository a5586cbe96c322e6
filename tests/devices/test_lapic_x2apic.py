"""The local APIC in x2APIC mode (SDM vol. 3A, section 11.12): mode switches, MSRs, faults, destinations."""

from __future__ import annotations

import pytest
from apic_rig import Cpu, Rig

from iobus.clock import SteppedClock
from iobus.devices import lapic_registers as r
from iobus.devices.lapic import Lapic
from iobus.devices.lapic_registers import LVT_MASKED as MASKED
from iobus.irq import ApicBus, DeliveryMode, Message

DISABLED, INVALID, XAPIC, X2APIC = 0xFEE00100, 0xFEE00500, 0xFEE00900, 0xFEE00D00


def msr(register: int) -> int:
    return 0x800 + (register >> 4)


def x2apic(cpus: int = 1, *, tsc: bool = True) -> Rig:
    rig = Rig(cpus, x2apic=True, tsc=tsc)
    for lapic in rig.lapics:
        assert lapic.write_msr(r.IA32_APIC_BASE, X2APIC)
    return rig


@pytest.mark.parametrize(
    ("path", "legal"),
    [
        ((XAPIC, X2APIC), True),
        ((X2APIC, DISABLED), True),
        ((XAPIC, XAPIC), True),
        ((XAPIC, DISABLED), True),
        ((X2APIC, X2APIC), True),
        ((DISABLED, DISABLED), True),
        ((DISABLED, XAPIC), True),
        ((X2APIC, DISABLED, XAPIC, X2APIC), True),
        ((X2APIC, XAPIC), False),
        ((X2APIC, INVALID), False),
        ((DISABLED, X2APIC), False),
        ((DISABLED, INVALID), False),
        ((XAPIC, INVALID), False),
    ],
)
def test_mode_switches(path: tuple[int, ...], legal: bool) -> None:
    """Figure 11-27: out of x2APIC only by disabling, into it only from xAPIC; EXTD without EN never."""
    lapic = Rig(x2apic=True).lapic
    *before, last = path
    for value in before:
        assert lapic.write_msr(r.IA32_APIC_BASE, value)
    old = lapic.read_msr(r.IA32_APIC_BASE)
    assert lapic.write_msr(r.IA32_APIC_BASE, last) is legal
    assert lapic.read_msr(r.IA32_APIC_BASE) == (last if legal else old)


def test_the_page_is_gone_and_the_msrs_are_there() -> None:
    """Section 11.12.2: no memory-mapped access in x2APIC mode, no MSR access in xAPIC mode."""
    rig = Rig(x2apic=True)
    assert rig.lapic.read_msr(msr(r.VERSION)) is None and not rig.lapic.write_msr(msr(r.TPR), 0)
    rig.lapic.write_msr(r.IA32_APIC_BASE, X2APIC)
    assert rig.bus.read(0xFEE00030, 4) is NotImplemented
    assert rig.lapic.read_msr(msr(r.VERSION)) == r.VERSION_VALUE
    assert rig.lapic.write_msr(msr(r.TPR), 0x35) and rig.lapic.read_cr8() == 3


def test_state_survives_the_switch_but_id_and_destination() -> None:
    """Section 11.12.5.1: a written xAPIC ID and ICR's high half are lost, the LVT and SVR are kept."""
    rig = Rig(x2apic=True)
    rig.put(r.ID, 0x33000000)
    rig.put(r.ICR_HIGH, 0x44000000)
    rig.lapic.write_msr(r.IA32_APIC_BASE, X2APIC)
    assert rig.lapic.read_msr(msr(r.ID)) == 0 and rig.lapic.read_msr(msr(r.ICR_LOW)) == 0
    assert rig.lapic.read_msr(msr(r.SVR)) == 0x1FF and rig.lapic.read_msr(msr(r.LVT_LINT0)) == 0x700


READABLE = {0x802, 0x803, 0x808, 0x80A, 0x80D, 0x80F, *range(0x810, 0x829), 0x830, *range(0x832, 0x83A), 0x83E}
WRITABLE = {0x808, 0x80B, 0x80F, 0x828, 0x830, *range(0x832, 0x839), 0x83E, 0x83F}


def test_which_msrs_can_be_read_and_written() -> None:
    """Table 11-6; every other of 0x800-0x8FF faults: DFR, ICR's high half, CMCI, the retired registers."""
    rig = x2apic()
    assert {index for index in range(0x800, 0x900) if rig.lapic.read_msr(index) is not None} == READABLE
    assert {index for index in range(0x800, 0x900) if rig.lapic.write_msr(index, 0)} == WRITABLE
    assert all(rig.lapic.handles_msr(index) for index in (0x1B, 0x6E0, 0x800, 0x8FF))
    assert not rig.lapic.handles_msr(0x900)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x808, 0x100),
        (0x80B, 1),
        (0x80F, 0x2000),
        (0x828, 1),
        (0x830, 1 << 20),
        (0x832, 1 << 8),
        (0x835, 1 << 17),
        (0x837, 1 << 8),
        (0x838, 1 << 32),
        (0x83E, 4),
        (0x83F, 0x100),
    ],
    ids=hex,
)
def test_reserved_bits_fault(index: int, value: int) -> None:
    """Section 11.12.1.2: #GP, and nothing is written."""
    rig = x2apic()
    before = rig.lapic.save()
    assert not rig.lapic.write_msr(index, value)
    assert rig.lapic.save() == before


def test_the_tsc_deadline_mode_bit_is_reserved_without_a_tsc() -> None:
    assert x2apic().lapic.write_msr(msr(r.LVT_TIMER), MASKED | 2 << 17)
    assert not x2apic(tsc=False).lapic.write_msr(msr(r.LVT_TIMER), MASKED | 2 << 17)


def test_icr_is_one_register_that_sends() -> None:
    """Section 11.12.9: destination in the high 32 bits, one write."""
    rig = x2apic(3)
    rig.lapic.write_msr(0x830, 2 << 32 | 0x40F1)
    assert rig.lapics[2].acknowledge() == 0xF1 and not rig.lapics[1].pending()
    assert rig.lapic.read_msr(0x830) == 2 << 32 | 0x40F1
    rig.lapic.write_msr(0x830, 0xFFFFFFFF << 32 | 0x40F2)
    assert all(lapic.state.irr >> 0xF2 & 1 for lapic in rig.lapics)


def test_self_ipi() -> None:
    """Section 11.12.11: an edge-triggered fixed interrupt to itself; an illegal vector is the sender's error too."""
    rig = x2apic(2)
    assert rig.lapic.write_msr(0x83F, 0xF1)
    assert rig.lapic.acknowledge() == 0xF1 and not rig.lapics[1].pending()
    rig.lapic.write_msr(0x83F, 0x05)
    rig.lapic.write_msr(0x828, 0)
    assert rig.lapic.read_msr(0x828) == 0x60


def test_eoi_ends_the_interrupt() -> None:
    rig = x2apic()
    rig.fixed(0x50, level=True)
    rig.lapic.acknowledge()
    assert rig.lapic.read_msr(0x812) == 1 << 0x10
    assert rig.lapic.write_msr(0x80B, 0)
    assert rig.lapic.read_msr(0x812) == 0 and rig.eois == [0x50]


@pytest.mark.parametrize(("apic_id", "logical"), [(0, 1), (0xF, 0x8000), (0x10, 0x10001), (0x12345, 0x12340020)])
def test_the_logical_id_is_derived(apic_id: int, logical: int) -> None:
    """Section 11.12.10.2: cluster = ID[19:4], member = 1 << ID[3:0]."""
    lapic = Lapic(apic_id, Cpu(), ApicBus(), SteppedClock(), bsp=False, x2apic=True)
    lapic.virtual_wire()
    lapic.write_msr(r.IA32_APIC_BASE, X2APIC)
    assert lapic.read_msr(0x802) == apic_id and lapic.read_msr(0x80D) == logical
    assert lapic.matches(Message(apic_id, False, DeliveryMode.FIXED, 0x50))
    assert lapic.matches(Message(logical, True, DeliveryMode.FIXED, 0x50))
    assert not lapic.matches(Message(logical ^ 0x10000, True, DeliveryMode.FIXED, 0x50))


def test_an_ioapics_8_bit_destinations_reach_cluster_0_and_all() -> None:
    """A logical destination of 8 bits names members of cluster 0, a physical 0xFF everybody."""
    rig = x2apic(4)
    rig.apic_bus.send(Message(0xD, True, DeliveryMode.FIXED, 0x50))
    assert [lapic.pending() for lapic in rig.lapics] == [True, False, True, True]
    rig.apic_bus.send(Message(0xFF, False, DeliveryMode.FIXED, 0x60))
    assert all(lapic.acknowledge() == 0x60 for lapic in rig.lapics)


def test_init_stays_in_x2apic_mode() -> None:
    """Section 11.12.5.1: the mode outlives INIT; a machine reset ends it."""
    rig = x2apic(2)
    rig.lapics[1].write_msr(0x830, 0x4500)
    assert rig.cpu.events == ["init"] and rig.lapic.x2apic_mode and rig.lapic.read_msr(0x80F) == 0xFF
    rig.lapic.reset()
    assert rig.lapic.read_msr(r.IA32_APIC_BASE) == XAPIC and rig.bus.read(0xFEE00030, 4) == r.VERSION_VALUE
