"""As test_kvm_guests.py: what a KVM does whose CPU has VMX or SVM, and one that emulates in the kernel does not."""

from __future__ import annotations

import pytest
from kvm_rig import needs_hardware
from test_interrupts import (  # noqa: F401
    test_a_halt_in_the_service_of_an_nmi_is_not_ended_by_the_next,
    test_a_waiting_interrupt_comes_exactly_when_the_window_opens,
    test_an_interrupt_raised_by_an_access_that_ends_in_a_fault_is_not_lost,
    test_an_nmi_comes_before_an_interrupt,
    test_interrupts_in_real_mode_go_through_the_vector_table,
    test_interrupts_with_no_window_wait_for_iret,
)

pytestmark = [needs_hardware, pytest.mark.usefixtures("way")]
