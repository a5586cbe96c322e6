"""The guests of the Unicorn engine's tests on KVM: what holds on every engine. Here what any KVM can do.

The tests are those of tests/unicorn, found here by import.
"""

from __future__ import annotations

import pytest
from kvm_rig import needs_kvm
from test_exits import (  # noqa: F401
    test_a_machine_answers_with_ones_and_counts,
    test_a_machine_can_stop_at_unclaimed_accesses,
    test_a_read_modify_write_reads_once_and_writes_once,
    test_an_answer_wider_than_the_access_is_cut,
    test_registers_can_be_read_but_not_set_within_an_access,
    test_string_io_comes_element_by_element,
    test_string_moves_between_ram_and_devices,
)
from test_guest_memory import (  # noqa: F401
    test_code_runs_at_address_0,
    test_flags_are_known_in_the_middle_of_a_block,
    test_load_and_store_in_real_mode_and_at_mmio,
    test_load_and_store_reach_what_the_guest_reaches,
    test_the_guest_runs_with_the_segments_it_is_given,
)
from test_interrupts import (  # noqa: F401
    test_all_vectors_are_delivered_once_and_in_the_controllers_order,
    test_an_nmi_within_an_nmi_waits_for_iret,
    test_interrupts_and_kicks_do_not_disturb_each_other,
    test_interrupts_from_another_thread_are_all_counted,
    test_sti_and_hlt_is_woken_behind_the_hlt,
    test_sti_followed_by_cli_opens_no_window,
)
from test_readonly import (  # noqa: F401
    test_a_rom_is_read_and_run_and_writes_to_it_go_to_the_bus,
    test_a_write_that_nobody_takes_is_an_exit,
    test_code_written_while_released_is_run_when_protected,
    test_protection_changes_with_the_very_next_instruction,
)
from test_stops import (  # noqa: F401
    test_a_device_error_raises_out_of_run_and_run_goes_on,
    test_a_device_stops_the_machine_with_its_reason,
    test_a_kick_before_a_run_is_kept,
    test_a_timeout_ends_a_spinning_guest_and_it_goes_on,
    test_an_error_in_a_timer_raises_out_of_run,
    test_closing_a_machine_with_an_exit_unanswered,
    test_ctrl_c_stops_the_guest_and_it_runs_on,
    test_hlt_with_interrupts_off_is_an_exit_until_an_nmi,
    test_machines_come_and_go_without_leaving_anything,
    test_no_kick_of_a_spinning_guest_is_lost,
    test_of_several_device_errors_before_the_guest_stops_each_is_raised,
    test_resetting_a_machine_with_an_exit_unanswered,
    test_what_the_guest_did_when_ctrl_c_came_is_not_lost,
)

pytestmark = [needs_kvm, pytest.mark.usefixtures("way")]
