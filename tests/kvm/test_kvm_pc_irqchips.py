"""Guests on the whole PC (tests/guests) on KVM with its own LAPICs, and with all interrupt controllers its own.

What concerns where the controllers are: lines, levels and messages that devices in Python make. KVM's LAPIC itself is
not ours to test, and differs (docs/engines.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rig
from kvm_rig import needs_hardware
from test_pc_ioapic import (  # noqa: F401
    test_a_level_comes_again_until_it_is_served,
    test_a_level_masked_by_its_handler,
    test_destinations,
    test_edges,
    test_held_by_the_task_priority,
    test_levels,
    test_masks,
    test_simultaneous_interrupts,
)
from test_pc_legacy import test_the_slaves_interrupt_in_real_mode, test_the_timer_in_real_mode  # noqa: F401
from test_pc_timers import test_fully_nested  # noqa: F401

pytestmark = [needs_hardware, pytest.mark.usefixtures("way")]


@pytest.fixture(scope="module", params=["split", "kernel"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The rig's guests run on KVM, with an irqchip."""
    before, rig.way = rig.way, f"kvm-{request.param}"
    yield rig.way
    rig.way = before
