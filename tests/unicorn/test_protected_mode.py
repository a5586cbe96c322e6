"""Exceptions and interrupts of a guest in 32-bit protected mode, in both ways of the Unicorn engine.

By the Intel SDM vol. 3A, "Interrupt and Exception Handling", and vol. 2A, "INT n". With the fallback all of
it is deliver.py; with intercepts it is the library's own, which leaves EXT in error codes clear.
"""

from __future__ import annotations

import struct

import pytest
from rig import (
    CODE,
    CODE32,
    DATA32,
    GDT,
    IDT,
    KERNEL_STACK,
    STACK,
    TSS,
    USER_CODE32,
    USER_DATA32,
    ProtectedGuest,
    Vectors,
    code32,
)

from iobus.cpu_registers import Segment
from iobus.exits import PioExit, ShutdownExit

pytestmark = pytest.mark.usefixtures("way")

HANDLER = CODE + 0x1000
FREE = 0x30
"""The first selector that tests put descriptors of their own at."""
EXT = 1

FRAME = code32("""
    66 b8 10 00     ; mov ax, 0x10
    8e d8           ; mov ds, ax
    b8 00 00 03 00  ; mov eax, 0x30000
    8f 00           ; pop dword ptr [eax]
    8f 40 04        ; pop dword ptr [eax + 4]
    8f 40 08        ; pop dword ptr [eax + 8]
    8f 40 0c        ; pop dword ptr [eax + 12]
    8f 40 10        ; pop dword ptr [eax + 16]
    8f 40 14        ; pop dword ptr [eax + 20]
    8f 40 18        ; pop dword ptr [eax + 24]
    8f 40 1c        ; pop dword ptr [eax + 28]
    8f 40 20        ; pop dword ptr [eax + 32]
    8f 40 24        ; pop dword ptr [eax + 36]
    f4              ; hlt
""")
"""A handler that keeps ten words of its stack and ends."""
ERROR = b"\x6a\x00"
"""PUSH 0 in front of it, for an exception without an error code."""


def frame(guest: ProtectedGuest, words: int) -> tuple[int, ...]:
    return tuple(guest.word(4 * index, 4) for index in range(words))


FAULTS = {
    "#DE": (0, None, "31 c9 f7 f1", 2),  # xor ecx, ecx; div ecx
    "#UD": (6, None, "0f 0b", 0),  # ud2
    "#NP": (11, 0x38, "66 b8 3b 00 8e e0", 4),  # mov ax, 0x3b; mov fs, ax
    "#SS": (12, 0x38, "66 b8 3b 00 8e d0", 4),  # mov ax, 0x3b; mov ss, ax
    "#GP": (13, 0x88, "66 b8 8b 00 8e e0", 4),  # mov ax, 0x8b (beyond the GDT); mov fs, ax
    "#GP of CLI": (13, 0, "fa", 0),  # cli
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_of_a_user_is_handled_on_the_kernels_stack(name: str) -> None:
    """SS0:ESP0 of the TSS; SS, ESP, EFLAGS, CS, EIP of the instruction, and its error code are there."""
    vector, error, code, at = FAULTS[name]
    with ProtectedGuest(bytes.fromhex(code)) as guest:
        guest.memory.store(GDT + 0x38, 8, 0x00CF73000000FFFF)  # user data that is not present
        guest.gate(vector, (ERROR if error is None else b"") + FRAME, HANDLER)
        guest.user(CODE, rflags=0x202)
        r = guest.finish()
        code_, eip, cs, eflags, esp, ss = frame(guest, 6)
        assert (code_, eip, cs, esp, ss) == (error or 0, CODE + at, USER_CODE32 | 3, STACK, USER_DATA32 | 3)
        assert eflags & 0x20202 == 0x202
        assert (r.rsp, r.ss.selector, r.cs.selector, r.cpl) == (KERNEL_STACK + 16, DATA32, CODE32, 0)
        assert r.rflags & 0x200 == 0


def test_a_page_fault_brings_its_code_and_address() -> None:
    """32-bit page tables: a user's write to a page of the kernel's, CR2 and error code P, W and U."""
    with ProtectedGuest(b"\xa3\x00\x20\x10\x00") as guest:  # mov [0x102000], eax
        guest.memory.store(0x5000, 4, 0x6000 | 7)
        for page in range(512):
            guest.memory.store(0x6000 + 4 * page, 4, page << 12 | (3 if page == 0x102 else 7))
        guest.gate(14, FRAME, HANDLER)
        guest.user(CODE, cr0=0x80010033, cr3=0x5000)
        r = guest.finish()
        assert frame(guest, 3) == (7, CODE, USER_CODE32 | 3)
        assert r.cr2 == 0x102000


def test_int_checks_the_gates_privilege() -> None:
    """INT n of a user through a gate of DPL 0: #GP with the gate's index at the INT; DPL 3 lets it through."""
    for dpl, expected in ((0, (0x40 * 8 + 2, CODE + 1)), (3, (0, CODE + 3))):
        with ProtectedGuest(b"\x90\xcd\x40") as guest:
            guest.gate(0x40, ERROR + FRAME, HANDLER, dpl=dpl)
            guest.gate(13, FRAME, HANDLER + 0x100)
            guest.user(CODE)
            guest.finish()
            assert frame(guest, 2) == expected


def test_int3_and_into_are_a_byte_long_also_where_memory_starts() -> None:
    """A fault in their delivery is at the instruction, here at address 0, with nothing in front of it."""
    for program, vector in ((b"\xcc", 3), (b"\xce", 4)):
        with ProtectedGuest(b"") as guest:
            guest.memory.write(0, program)
            guest.gate32(vector, b"", HANDLER)
            guest.gate(13, FRAME, HANDLER + 0x100)
            guest.user(0, rflags=0x802)
            guest.finish()
            assert frame(guest, 2) == (vector * 8 + 2, 0)


@pytest.mark.parametrize(("kind", "interrupts"), [(14, 0), (15, 0x200)], ids=["interrupt gate", "trap gate"])
def test_gates_mask_interrupts_or_leave_them(kind: int, interrupts: int) -> None:
    """An interrupt gate clears IF, a trap gate does not; both clear TF and NT. IRET brings back what was."""
    program = code32("""
        68 02 42 00 00  ; push 0x4202
        9d              ; popfd
        cd 40           ; int 0x40
        fa              ; cli
        9c              ; pushfd
        58              ; pop eax
        f4              ; hlt
    """)
    handler = code32("""
        9c     ; pushfd
        8f 07  ; pop dword ptr [edi]
        cf     ; iretd
    """)
    with ProtectedGuest(program) as guest:
        guest.gate32(0x40, handler, HANDLER, kind=kind)
        r = guest.finish()
        assert guest.word(0, 4) == 2 | interrupts
        assert r.rax == 0x4002


def test_a_conforming_handler_runs_at_the_users_level() -> None:
    """No change of stack; CPL stays 3, in CS's RPL too."""
    with ProtectedGuest(b"\xcd\x40") as guest:
        guest.memory.store(GDT + FREE, 8, 0x00CF9F000000FFFF)
        guest.gate32(0x40, b"\xf4", HANDLER, dpl=3, selector=FREE)
        guest.gate(13, FRAME, HANDLER + 0x100)
        guest.user(CODE)
        guest.finish()
        assert frame(guest, 3) == (0, HANDLER, FREE | 3)  # HLT is not for users
        assert guest.memory.load(STACK - 12, 4) == CODE + 2


def test_a_16_bit_gate_pushes_words() -> None:
    """IP, CS and FLAGS of 2 bytes each, and a target of 16 bits; with a 16-bit TSS, SP and SS from there."""
    frame16 = code32("""
        66 8f 07     ; pop word ptr [edi]
        66 8f 47 02  ; pop word ptr [edi + 2]
        66 8f 47 04  ; pop word ptr [edi + 4]
        66 8f 47 06  ; pop word ptr [edi + 6]
        66 8f 47 08  ; pop word ptr [edi + 8]
        f4           ; hlt
    """)
    with ProtectedGuest(b"") as guest:
        guest.memory.write(TSS, struct.pack("<3H", 0, 0x6F00, DATA32))
        guest.memory.write(0x4000, b"\xcd\x40")
        guest.gate32(0x40, frame16, 0x5000, kind=6, dpl=3)
        guest.user(0x4000, tr=Segment(0x28, TSS, 0x2B, 0x83), rsp=0x6800)
        r = guest.finish()
        words = [guest.word(2 * index, 2) for index in range(5)]
        assert words == [0x4002, USER_CODE32 | 3, 2, 0x6800, USER_DATA32 | 3]
        assert r.rsp == 0x6F00


def test_virtual_8086_mode_is_left_with_all_segments_saved() -> None:
    """GS, FS, DS, ES below SS:SP on the kernel's stack, the registers themselves null; EFLAGS.VM in the image only."""
    selectors = {"cs": 0x1000, "ss": 0x1100, "es": 0x1200, "ds": 0x1300, "fs": 0x1400, "gs": 0x1500}
    with ProtectedGuest(b"\xf4") as guest:  # HLT: #GP at CPL 3
        keep = code32("""
            8c d8           ; mov eax, ds
            8c e1           ; mov ecx, fs
            09 c8           ; or eax, ecx
            89 c6           ; mov esi, eax
        """)
        guest.gate(13, keep + FRAME, HANDLER)
        segments = {name: Segment(value, value << 4, 0xFFFF, 0xF3) for name, value in selectors.items()}
        guest.set(rip=0, rsp=0x100, rflags=0x20002, **segments)
        r = guest.finish()
        assert (r.rsi, r.rflags & 0x20000, r.cs.selector) == (0, 0, CODE32)
        assert frame(guest, 10) == (
            0, 0, 0x1000, 0x20002 | guest.word(12, 4) & 0x10000, 0x100, 0x1100, 0x1200, 0x1300, 0x1400, 0x1500
        )  # fmt: skip


def test_an_interrupt_of_a_user_that_spins() -> None:
    """It comes over the TSS's stack, and IRETD goes on at the user's level."""
    program = code32("""
        83 3f 03  ; cmp dword ptr [edi], 3
        75 fb     ; jne .-3
        0f 0b     ; ud2
    """)
    handler = code32("""
        ff 07  ; inc dword ptr [edi]
        cf     ; iretd
    """)
    with ProtectedGuest(program) as guest:
        guest.gate(0x40, handler, HANDLER)
        guest.gate(6, b"\xf4", HANDLER + 0x100)
        guest.user(CODE, rflags=0x202)
        Vectors(guest.machine, 0x40, 0x40, 0x40)
        assert guest.finish().rsp == KERNEL_STACK - 20


def test_sti_and_hlt_wait_for_an_interrupt() -> None:
    """The handler returns behind the HLT."""
    program = code32("""
        fb  ; sti
        f4  ; hlt
        fa  ; cli
        f4  ; hlt
    """)
    with ProtectedGuest(program) as guest:
        guest.gate(0x40, code32("""
            8b 34 24  ; mov esi, [esp]
            cf        ; iretd
        """), HANDLER)  # fmt: skip
        Vectors(guest.machine, 0x40)
        assert guest.finish().rsi == CODE + 2


# Faults on the way to a handler.


def bad_gate(guest: ProtectedGuest, vector: int, **changed: int) -> None:
    guest.gate32(vector, b"\xf4", HANDLER + 0x200, dpl=3, **changed)


def test_a_gate_that_is_not_present_is_an_np() -> None:
    """#NP with the gate's index, and IDT."""
    with ProtectedGuest(b"\x90\xcd\x40") as guest:
        bad_gate(guest, 0x40)
        guest.memory.store(IDT + 8 * 0x40 + 5, 1, 0x6E)
        guest.gate(11, FRAME, HANDLER)
        guest.finish()
        assert frame(guest, 2) == (0x40 * 8 + 2, CODE + 1)


@pytest.mark.parametrize(
    ("selector", "descriptor", "vector"),
    [
        (0, 0, 13),
        (DATA32, None, 13),
        (USER_CODE32, None, 13),
        (0x38, 0x00CF1B000000FFFF, 11),
        (0x88, None, 13),
    ],
    ids=["null", "data", "of a lower privilege", "not present", "beyond the GDT"],
)
def test_a_gate_to_a_segment_that_cannot_be_is_a_fault(selector: int, descriptor: int | None, vector: int) -> None:
    """#GP or #NP with the selector."""
    with ProtectedGuest(b"\x90\xcd\x40") as guest:
        if descriptor is not None and selector:
            guest.memory.store(GDT + selector, 8, descriptor)
        bad_gate(guest, 0x40, selector=selector)
        guest.gate(vector, FRAME, HANDLER)
        guest.finish()
        assert frame(guest, 2) == (selector, CODE + 1)


@pytest.mark.parametrize(
    ("ss", "descriptor"),
    [
        (USER_DATA32, None),
        (DATA32 | 3, None),
        (0x38, 0x00CF91000000FFFF),
        (0x88, None),
    ],
    ids=["of the user's level", "with another RPL", "read-only", "beyond the GDT"],
)
def test_a_kernel_stack_that_cannot_be_is_a_ts(ss: int, descriptor: int | None) -> None:
    """#TS with SS0 of the TSS, at the user's INT. Its handler is a conforming one, which needs no other stack."""
    with ProtectedGuest(b"\x90\xcd\x40") as guest:
        if descriptor is not None:
            guest.memory.store(GDT + 0x38, 8, descriptor)
        guest.memory.store(GDT + FREE, 8, 0x00CF9F000000FFFF)
        guest.memory.store(TSS + 8, 4, ss)
        bad_gate(guest, 0x40)
        at_user = code32("""
            8b 04 24     ; mov eax, [esp]
            89 07        ; mov [edi], eax
            8b 44 24 04  ; mov eax, [esp + 4]
            89 47 04     ; mov [edi + 4], eax
            e6 10        ; out 0x10, al
        """)
        guest.gate32(10, at_user, HANDLER, selector=FREE)
        guest.user(CODE, rflags=0x3002)
        assert isinstance(guest.machine.run(timeout=20, unclaimed="stop"), PioExit)
        assert frame(guest, 2) == (ss & ~3, CODE + 1)


def test_a_triple_fault_is_a_shutdown() -> None:
    """#UD without an IDT."""
    with ProtectedGuest(b"\x90\x0f\x0b") as guest:
        guest.set(idt_limit=0)
        assert guest.machine.run(timeout=20) == ShutdownExit(CODE + 1)


@pytest.mark.parametrize("tr", [Segment(0, 0, 0xFFFF, 0x8B), Segment(), Segment(access=0)], ids=repr)
def test_a_user_in_a_guest_without_a_tss_ends_in_a_shutdown(tr: Segment) -> None:
    """The task register as it is at reset, or useless: #TS, and nowhere to go. Not the end of the monitor."""
    with ProtectedGuest(b"\x0f\x0b") as guest:
        guest.gate(6, b"\xf4", HANDLER)
        guest.user(CODE, tr=tr)
        assert guest.machine.run(timeout=20) == ShutdownExit(CODE)
