"""Hardware tasks on the whole PC (Intel SDM vol. 3A, chapter 8). The guests are tasks.s."""

from __future__ import annotations

import pytest
import rig
from guest_rig import run32

pytestmark = pytest.mark.usefixtures("way")

GATES = pytest.mark.lost("hardware task switches through gates of the IDT")

MAIN, OTHER = 0x28, 0x30
MAIN_RUNS, OTHER_NESTED, OTHER_ALONE = [MAIN, 11, 9], [OTHER, 11, 11], [OTHER, 9, 11]
"""TR, and the types of the two tasks' descriptors."""


def test_a_task_is_called_and_returns() -> None:
    """Section 8.3: both busy, NT and the back link, CR0.TS; IRET goes back; called again it goes on where it was."""
    assert run32("tasks", "calls") == [*OTHER_NESTED, 1, MAIN, 1, 0x1111, *MAIN_RUNS, 0, 0x1111, 77, 99]


def test_a_jump_to_a_task_leaves_the_other() -> None:
    """Table 8-2: the one left is available, and NT is clear."""
    assert run32("tasks", "jumps") == [*OTHER_ALONE, 0, *MAIN_RUNS, 0]


def test_a_task_gate() -> None:
    """Section 8.2.5: the gate's selector is called in place of the far address."""
    assert run32("tasks", "gate") == [*OTHER_NESTED, *MAIN_RUNS]


@GATES
def test_interrupts_and_exceptions_by_task_gates() -> None:
    """Section 8.3: each a nested task; faults are at their instruction; an NMI's IRET unmasks NMIs again."""
    off, on = [0, 1], [1, 1]
    assert run32("tasks", "interrupts") == [
        *off, 1, *off, 2, *off, 3, *on, 4, *off, 5, *off, 0, 1, *off, 0, 6, *off, 7,
    ]  # fmt: skip


@GATES
def test_a_page_fault_in_a_task_of_its_own() -> None:
    """Section 6.12.2: the error code is on the new task's stack; CR3 is the TSS's, each way."""
    assert run32("tasks", "page_fault") == [2, 0, 0x450000, 0x61000, 0, 0x1234, 0x60000]


@GATES
def test_a_fault_in_the_delivery_of_another() -> None:
    """Table 6-5: a page fault in the delivery of a division error, or an INT; then the instruction again."""
    stack, the_int = 0x4507FC, 0x22  # where its address is, from the DIV's
    assert run32("tasks", "serial") == [2, stack, 0, 3, 2, stack, the_int, 5]


@GATES
def test_what_cannot_be_switched_to() -> None:
    """Table 8-1: busy #GP, absent #NP, too short #TS; by a gate with EXT of the error code clear; a bad back link."""
    assert run32("tasks", "faults") == [
        13, OTHER, 11, OTHER, 10, OTHER, 1, 13, OTHER, 13, 0x10, 2, 10, 0x10, MAIN, 11, 11,
    ]  # fmt: skip


@GATES
def test_a_task_in_virtual_8086_mode() -> None:
    """Section 21.2.2: VM of the TSS's EFLAGS; UD2 there comes back by a task gate, all saved: nested, it stays busy."""
    assert run32("tasks", "v86_task") == [MAIN, 11, 11, 0x1234, 0x20000, 10, 0x2345, 0x10]


def test_a_16_bit_tss() -> None:
    """Section 8.6: the task of a 16-bit TSS runs 16-bit code and returns."""
    if not rig.way.startswith("kvm"):
        pytest.skip("the Unicorn library takes the segments of a 16-bit TSS from the wrong places")
    assert run32("tasks", "tss16") == [*MAIN_RUNS[:2], 1, OTHER << 16 | 0x1616]
