"""Events in 64-bit code on the whole PC (Intel SDM vol. 3A, chapter 6; 3B, 18). The guests are events.s."""

from __future__ import annotations

import pytest
import rig
from guest_rig import run

pytestmark = pytest.mark.usefixtures("way")


def test_no_nmi_right_behind_sti() -> None:
    """In 200 tries none comes between STI and the instruction behind it, as on Intel's processors."""
    assert run("events", "nmi_behind_sti") == [0]


def test_interrupts_in_the_middle_of_a_string() -> None:
    """SDM vol. 2, REP: the address of the instruction, with RCX and RDI of what is left; it goes on behind."""
    end, wrong, interrupted, broken = run("events", "rep")
    assert (end, wrong, broken) == (0x108000, 0, 0)
    assert interrupted >= 3


def test_an_interrupt_of_a_user_program() -> None:
    """Section 6.14.2: RSP0 of the TSS, the program's CS, RSP and SS on it, and back."""
    assert run("events", "user") == [0x1F000 - 40, 0x2B, 0x2F000, 0x23, 0x200, 1, 2]


def test_single_steps() -> None:
    """Vol. 3B, 18.3.1.4: a trap behind each instruction, DR6.BS set; none between MOV SS and the next."""
    assert run("events", "single_step") == [1, 3, 5, 9, 11, 13, 16, 19, 21, 22, 29, 30]


def test_a_single_step_comes_before_an_interrupt() -> None:
    """Table 6-2: the trap of the instruction before; the handler of the interrupt is not stepped."""
    assert run("events", "step_and_interrupt") == [0, 0x300, 0x41, 1, 2, 3, 10, 11]


def test_a_breakpoint_on_an_instruction() -> None:
    """Vol. 3B, 18.3.1.1: a fault on the instruction, and past it with RF."""
    assert run("events", "breakpoint")[:3] == [0, 1, 1]


@pytest.mark.lost("breakpoints on ports")
def test_a_breakpoint_on_a_port() -> None:
    """Vol. 3B, 18.3.1.2: a trap behind the OUT, DR6.B1 set."""
    if rig.way.startswith("kvm"):
        pytest.skip("KVM makes no such trap for a port that is not its own")
    assert run("events", "breakpoint")[3:] == [2]


def test_a_data_breakpoint() -> None:
    """Vol. 3B, 18.3.1.2: a trap behind the store; the load is none."""
    if not rig.way.startswith("kvm"):
        pytest.skip("the Unicorn library has no data breakpoints")
    assert run("events", "watchpoint") == [18, 2]


@pytest.mark.lost("faults of the CPU's MSRs")
def test_addresses_in_msrs_are_canonical() -> None:
    """Vol. 2, WRMSR: #GP for what is not, the value stays."""
    if rig.way.startswith("kvm"):
        pytest.skip("the hardware's, where KVM lets it have them; emulated hardware does not look")
    one = [0x11223344, 0x1234, 13, 0, 0x1234, 0xFFFF8000]
    assert run("events", "canonical") == one * 7


@pytest.mark.lost("faults of control registers")
def test_reserved_bits_of_cr4_fault() -> None:
    """Vol. 3A, 2.5: bits that CPUID does not offer, the high half, PAE cleared in long mode."""
    if rig.way.startswith("kvm"):
        pytest.skip("the hardware's; emulated hardware lets PAE be cleared")
    assert run("events", "control_registers") == [*[13] * 10, 0]
