"""The 8259s, the 8254, the RTC and the HPET as a guest on the whole PC meets them. The guests are timers.s.

Time passes where the guests say so, by a clock that the rig steps.
"""

from __future__ import annotations

import pytest
from guest_rig import run

pytestmark = pytest.mark.usefixtures("way")


# The 8259s (Intel 8259A data sheet), whose output is the LAPIC's LINT0 in virtual wire mode.


def test_fully_nested() -> None:
    """The lower number first; IRR shows all three; what is masked waits for its unmasking."""
    assert run("timers", "nested") == [1 << 3 | 1 << 5 | 1 << 6, 0x23, 0x25, 0x26, 1, 0x23, 2, 0x25]


def test_in_service_without_an_eoi() -> None:
    """Its own level and those below are held off, a higher one is not; specific EOIs end what they name."""
    assert run("timers", "in_service") == [0x24, 1, 0x23, 1 << 3 | 1 << 4, 2, 0x26, 1 << 6]


def test_automatic_eoi() -> None:
    """Both come with no EOI at all."""
    assert run("timers", "automatic") == [0x24, 0x26, 0]


def test_rotation() -> None:
    """A rotating EOI makes what was served the lowest; so does the set-priority command, here for 4."""
    assert run("timers", "rotation") == [0x23, 0x25, 0x23, 0x25, 0x23, 0x24]


def test_special_mask_mode() -> None:
    """3 is in service and masked: 5 waits for the special mask mode only."""
    assert run("timers", "special_mask") == [0x23, 1, 0x25]


def test_poll() -> None:
    """The level with bit 7, which then is in service; nothing the second time; no interrupt afterwards."""
    assert run("timers", "poll") == [0x86, 0, 1 << 6]


def test_a_level_triggered_input() -> None:
    """ELCR: one that has gone leaves nothing, also nothing in service; one that stays is delivered."""
    assert run("timers", "elcr") == [0, 1, 0x25]


# The 8254 (Intel 8254 data sheet).


def test_the_8254_interrupts() -> None:
    """Mode 0 interrupts once at the end of its count, mode 2 each time; read-back gives status and count."""
    log = run("timers", "pit", stepped=True)
    assert log[:-2] == [1, 0x20, 2, 0x20, 0x20, 3]
    assert log[-2] & 0x3F == 0x34 and 0 < log[-1] <= 1000


def test_counter_2_and_its_gate() -> None:
    """Mode 1: high until the gate rises at port 0x61, low while it counts, high again."""
    assert run("timers", "speaker", stepped=True) == [1, 0, 1]


# The RTC (MC146818A data sheet).


def test_the_rtcs_interrupts() -> None:
    """Periodic, once until register C is read; then update-ended, then an alarm that matches each second."""
    first, *log = run("timers", "rtc", stepped=True)
    assert first & 0x0F == 0
    assert log[:2] == [0x28, 1] and log[3:5] == [0x28, 2]
    assert log[2] & 0xC0 == 0xC0
    assert log[5] == 0x28 and log[6] & 0x90 == 0x90
    assert log[7] == 0x28 and log[8] & 0xA0 == 0xA0


# The HPET (specification 1.0a).


def test_the_hpet_by_a_line() -> None:
    """One-shot once; periodic each time; level-triggered until its status bit is cleared."""
    assert run("timers", "hpet", stepped=True) == [10_000_000, 1, 0x41, 2, 0x41, 0x41, 3, 2, 0x41, 0]


def test_the_hpets_messages_and_legacy_replacement() -> None:
    """2.3.9.2.2: FSB delivery as an MSI; 2.3.5: timer 0 is IRQ 0, at the I/O APIC's pin 2."""
    assert run("timers", "hpet_messages", stepped=True) == [1, 0x42, 1, 0x41]
