"""The guests on the whole PC (tests/guests) on KVM, with the interrupt controllers in Python.

Not those in virtual-8086 mode, nor a task switch that a page fault makes: QEMU's emulation of SVM, on which the tests
of KVM run where there is none, ends itself at an exit from that mode, and shuts the guest down there. Nor those of
instructions on memory-mapped I/O that KVM's emulator does not know.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rig
from kvm_rig import needs_hardware
from test_pc_apic import *  # noqa: F403
from test_pc_events import *  # noqa: F403
from test_pc_ioapic import *  # noqa: F403
from test_pc_legacy import (  # noqa: F401
    test_software_interrupts_in_real_mode,
    test_the_slaves_interrupt_in_real_mode,
    test_the_timer_in_real_mode,
)
from test_pc_mmio import test_arithmetic, test_read_modify_write, test_strings  # noqa: F401
from test_pc_tasks import (  # noqa: F401
    test_a_16_bit_tss,
    test_a_jump_to_a_task_leaves_the_other,
    test_a_task_gate,
    test_a_task_is_called_and_returns,
    test_interrupts_and_exceptions_by_task_gates,
    test_what_cannot_be_switched_to,
)
from test_pc_timers import *  # noqa: F403

pytestmark = [needs_hardware, pytest.mark.usefixtures("way")]


@pytest.fixture(scope="module")
def way() -> Iterator[str]:
    """The rig's guests run on KVM."""
    before, rig.way = rig.way, "kvm"
    yield rig.way
    rig.way = before
