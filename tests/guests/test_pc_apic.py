"""The local APIC as a guest on the whole PC meets it (Intel SDM vol. 3A, chapter 11). The guests are apic.s."""

from __future__ import annotations

import pytest
from guest_rig import PcGuest, run

pytestmark = pytest.mark.usefixtures("way")

MSRS = pytest.mark.lost("the MSRs of the interrupt controller")
CR8 = pytest.mark.lost("CR8")
SMP = pytest.mark.lost("several vCPUs")
ONES = 0xFFFFFFFF
GP = [13, 0]
"""What the guests log of a #GP: its vector and error code."""


# IA32_APIC_BASE.


@MSRS
def test_disabled_and_enabled_again() -> None:
    """Section 11.4.3: disabled, all ones are read, writes are lost, CR8 is kept and works; CPUID follows."""
    enabled = [0x10, 0x70, 0xFF, 3, 1]
    assert run("apic", "disable") == [0xFEE00100, ONES, ONES, 5, 7, 0, *enabled]


@MSRS
def test_the_page_follows_its_base() -> None:
    """Section 11.4.5: to another address, and onto RAM, which keeps what it held."""
    assert run("apic", "relocate") == [ONES, 0x10, 0x10, 4, 0x12345678, 0, 0x40]


@MSRS
def test_reserved_bits_of_the_base_fault() -> None:
    """Section 11.4.4: bits 0 and 9 and those from the physical address width on; the base stays."""
    assert run("apic", "reserved") == [*GP * 4, 0xFEE00900, 0]


@MSRS
def test_what_mode_may_follow_what() -> None:
    """Figure 11-27."""
    assert run("apic", "modes") == [*GP, 1, *GP * 2, 2, *GP * 2, 3, 0xFEE00900]


@MSRS
def test_x2apic_mode() -> None:
    """Section 11.12: registers as MSRs with their faults, no page, SELF IPI, the ICR in one."""
    assert run("apic", "x2apic") == [
        *GP, 0x10, ONES, ONES, 1, 0, *GP, 1, *GP * 6, 2, 3, 6, 0x42, 0x41,
    ]  # fmt: skip


# Priorities.


def test_what_waits_comes_by_priority() -> None:
    """Section 11.8.4: the IRR holds all three; the highest vector first."""
    assert run("apic", "waiting") == [1 << 0x11, 1 << 1 | 1 << 0x15, 0x55, 0x41, 0x31]


def test_handlers_nest_by_class() -> None:
    """Section 11.8.3.1: 0x51 interrupts the handler of 0x41, whose class and those below wait for its EOI."""
    assert run("apic", "nesting") == [
        0x41, 0x50, 1 << 1 | 1 << 0x11, 0x40, 1 << 1, 0x1041, 0x4F, 0x35,
    ]  # fmt: skip


@CR8
def test_the_task_priority_holds_its_class_and_those_below() -> None:
    """Section 11.8.3.1; CR8 is TPR's high half, both ways."""
    assert run("apic", "task_priority") == [0x61, 1, 5, 2, 0x4F, 3, 0x40, 0x4F, 4]


def test_software_disabled() -> None:
    """Section 11.4.7.2: nothing is taken, the LVT's masks are set, and stay so when it is enabled again."""
    assert run("apic", "software_disable") == [0x10041, 0x10041, 1, 0x41]


# IPIs.


@SMP
def test_physical_destinations() -> None:
    """Section 11.6.2.1: oneself, another, all by 0xFF, nobody."""
    assert run("apic", "physical", cpus=4) == [0x1, 0x100, 0x1000000, 0x1010101, 0]


@SMP
def test_shorthands() -> None:
    """Section 11.6.1: self, all, all but self; the destination does not count."""
    assert run("apic", "shorthands", cpus=4) == [0x1, 0x1010101, 0x1010100]


@SMP
def test_flat_logical_destinations() -> None:
    """Section 11.6.2.2: whoever has a bit in common."""
    assert run("apic", "flat", cpus=4) == [0x1, 0x1000100, 0x1010101, 0]


@SMP
def test_cluster_logical_destinations() -> None:
    """Section 11.6.2.2: members of one cluster; 0xFF is everybody."""
    assert run("apic", "cluster", cpus=4) == [0x1, 0x101, 0x1000000, 0x1010000, 0, 0x1010101]


@CR8
def test_lowest_priority() -> None:
    """Section 11.6.2.4: of those addressed the one with the lowest task priority."""
    assert run("apic", "lowest", cpus=4) == [0x10000, 0x100, 0x1000000, 0x1]


@MSRS
def test_x2apic_destinations() -> None:
    """Section 11.12.10: 32 bits of physical ID, logical clusters of 16, the broadcast, the shorthands."""
    assert run("apic", "x2apic_destinations", cpus=4) == [
        0x10000, 0x1010101, 0x1000100, 0, 0x1, 0x1010101, 0x1010100,
    ]  # fmt: skip


@SMP
def test_init_and_start_up() -> None:
    """Section 9.4.4: one start a pair; INIT stops a spinning CPU, the de-assert does nothing."""
    assert run("apic", "init", cpus=2) == [1, 0, 2]


# NMIs.


def test_nmis_within_an_nmi_are_one_more() -> None:
    """Section 6.7.1: ten are sent from the handler; one is kept, until its IRET."""
    assert run("apic", "nmi") == [1, 2, 3, 2]


@SMP
def test_two_nmis_at_once_are_two() -> None:
    """One is in service or about to be, the other is kept: none of the pair is lost, in 1000 tries."""
    assert run("apic", "two_nmis", cpus=2) == [1000, 2]


def test_errors() -> None:
    """Section 11.5.3: an illegal vector sent and received, an illegal register; ESR latches at writes."""
    assert run("apic", "errors") == [0x60, 0, 0xE0, 0]


# The timer.


def test_one_shot() -> None:
    """Section 11.5.4: it counts to zero, interrupts once, and the initial count stays."""
    assert run("apic", "one_shot") == [1, 0, 0x100000, 1]


def test_changes_of_the_timers_mode() -> None:
    """Section 11.5.4.1: between one-shot and periodic the count goes on; what ended stays ended."""
    assert run("apic", "mode_changes", stepped=True) == [2, 1, 1, 10_000_000, 2, 1, 0, 0, 0]


def test_periodic_until_masked() -> None:
    """Section 11.5.4: five at least, and none once the entry is masked."""
    assert run("apic", "periodic") == [0]


@pytest.mark.lost("the TSC deadline")
def test_the_tsc_deadline() -> None:
    """Section 11.5.4.1: at once where it is past, not before its time else; the MSR reads 0 then, and disarmed."""
    assert run("apic", "deadline") == [0x41, 1, 0, 0, 1, 0, 0]


@SMP
def test_an_others_counts_are_its_own() -> None:
    """The rig counts by CPU, so that the tests of destinations can fail."""
    with PcGuest("apic", "shorthands", cpus=4) as guest:
        guest.run()
        assert guest.counts(0x30) == [3, 3, 3, 3]
