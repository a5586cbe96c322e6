"""The I/O APIC as a guest on the whole PC meets it (Intel 82093AA). The guests are ioapic.s."""

from __future__ import annotations

import pytest
import rig
from guest_rig import run

pytestmark = pytest.mark.usefixtures("way")

SMP = pytest.mark.lost("several vCPUs")
REMOTE_IRR = 0x4000


def test_the_identification_registers() -> None:
    """Sections 3.2.1-3.2.3: version read-only, 24 pins; of the ID bits 24-27; the arbitration ID read-only."""
    *of_id, after = run("ioapic", "registers")
    assert of_id[:4] == [0, 1, 23, 0x0F000000]
    assert of_id[4] == after


def test_edges() -> None:
    """Section 3.2.4, bit 15: one interrupt a rising edge, and none for the level or its end."""
    assert run("ioapic", "edge") == [0x77, 1, 0x77, 2]


def test_simultaneous_interrupts() -> None:
    """SDM 11.8.4: in the order of their priority, whatever the order they came in."""
    assert run("ioapic", "simultaneous") == [0x78, 0x66]


def test_levels() -> None:
    """Section 3.2.4, bit 14: Remote IRR until the EOI; one interrupt; the LAPIC's TMR tells level from edge."""
    assert run("ioapic", "level") == [0, REMOTE_IRR, 0x77, 0, 1 << 0x17, 0x77, 0]


def test_a_level_comes_again_until_it_is_served() -> None:
    """Two in a row are two; one that its handler leaves asserted is delivered again after the EOI."""
    assert run("ioapic", "retrigger") == [0x77, 0x77, 1, 0x78, 0x78]


def test_masks() -> None:
    """Section 3.2.4, bit 16: an edge on a masked pin is lost, a level comes with the unmasking."""
    assert run("ioapic", "masks") == [1, 0x77, 2, 3, 0x78, 4]


def test_a_level_masked_by_its_handler() -> None:
    """Nothing comes while it is masked; unmasked and still asserted, once more; and not when it is over."""
    assert run("ioapic", "masked_in_handler") == [0x77, 1, 0x77, 2]


def test_a_destination_changed_by_the_handler() -> None:
    """The EOI is matched by vector: it ends the interrupt though the pin now goes elsewhere."""
    assert run("ioapic", "other_destination") == [0x77, 0]


def test_held_by_the_task_priority() -> None:
    """Accepted, as Remote IRR shows, and delivered when the priority allows."""
    assert run("ioapic", "held") == [REMOTE_IRR, 1, 0x77, 2]


def test_suppressed_broadcasts_of_eois() -> None:
    """SDM 11.8.5 and the EOI register of version 0x20: only a write of the vector there ends it at the I/O APIC."""
    assert run("ioapic", "suppressed") == [0x77, REMOTE_IRR, 1, 2, 0x77, 3, 0]


def test_delivered_as_an_nmi() -> None:
    """Section 3.2.4, bits 8-10: an edge in any case, with interrupts off, and no Remote IRR."""
    assert run("ioapic", "nmi") == [2, 0, 2]


@SMP
def test_destinations() -> None:
    """Section 3.2.4: physical, logical, lowest priority to one of those addressed, all by 0xFF; a level to four."""
    one, self, three, lowest, all_, level, remote_irr = run("ioapic", "destinations", cpus=4)
    assert [one, self, three, all_, level, remote_irr] == [0x100, 1, 0x1010001, 0x1010101, 0x1010101, 0]
    assert lowest in (0x100, 0x10000, 0x1000000)


def test_an_interrupt_of_an_out_comes_right_behind_it() -> None:
    """Also in the middle of straight-line code; of REP OUTSB each element's does, and none is lost or done twice."""
    log = run("ioapic", "behind_out")
    assert log[-2:] == [0x50004, 0]
    if rig.way != "fallback":  # which takes it some instructions later
        assert log[:3] == [1, 0, 3]
        assert len(log) == 3 + 2 * 2 + 2
