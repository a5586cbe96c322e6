"""Exceptions and system calls of a guest, in both ways of the Unicorn engine.

By the Intel SDM vol. 3A, chapter 6, and for SYSCALL and SYSRET vol. 2B.
"""

from __future__ import annotations

import pytest
from rig import (
    CODE,
    CODE64,
    DATA,
    DATA64,
    IDT,
    IST_STACK,
    KERNEL_STACK,
    STACK,
    USER_CODE,
    USER_DATA,
    WINDOW,
    Guest,
    code64,
)

from iobus.exits import ShutdownExit

pytestmark = pytest.mark.usefixtures("way")

HANDLERS = CODE + 0x1000
LOG_RIP = code64("""
    48 8b 04 24  ; mov rax, [rsp]
    48 ab        ; stosq
    48 cf        ; iretq
""")
"""A handler that notes where it came from."""


# Exceptions.


def test_int_and_iret_return_behind_the_int_with_the_flags() -> None:
    """INT n and INT3 push the next address; the interrupt gate's cleared IF comes back with IRET."""
    program = code64("""
        fb     ; sti
        f9     ; stc
        cd 40  ; int 0x40
        cc     ; int3
        9c     ; pushfq
        5b     ; pop rbx
        fa     ; cli
        f4     ; hlt
    """)
    with Guest(program) as guest:
        for vector in (3, 0x40):
            guest.gate(vector, LOG_RIP, HANDLERS)
        r = guest.finish()
        assert (guest.word(), guest.word(8)) == (CODE + 4, CODE + 5)
        assert r.rbx & 0x201 == 0x201


FRAME = code64("""
    48 c7 c0 00 00 03 00  ; mov rax, 0x30000
    8f 00                 ; pop qword ptr [rax]
    8f 40 08              ; pop qword ptr [rax + 8]
    8f 40 10              ; pop qword ptr [rax + 16]
    8f 40 18              ; pop qword ptr [rax + 24]
    8f 40 20              ; pop qword ptr [rax + 32]
    8f 40 28              ; pop qword ptr [rax + 40]
    f4                    ; hlt
""")
"""A handler that keeps its stack frame (with an error code, six words) and ends."""


def frame(guest: Guest, words: int = 6) -> tuple[int, ...]:
    return tuple(guest.word(8 * index) for index in range(words))


def test_int_through_a_gate_that_is_not_for_users_is_a_gp_at_the_int() -> None:
    """#GP with the gate's index as its error code; it is a fault, so RIP is the INT's own address."""
    program = code64("""
        90     ; nop
        cd 40  ; int 0x40
    """)
    with Guest(program) as guest:
        guest.gate(0x40, LOG_RIP, HANDLERS)
        guest.gate(13, FRAME, HANDLERS + 0x100)
        guest.user(CODE)
        guest.finish()
        assert frame(guest)[:3] == (0x40 * 8 + 2, CODE + 1, USER_CODE | 3)


def test_an_exception_at_cpl_3_switches_the_stack() -> None:
    """To RSP0 of the TSS, with SS:RSP pushed there; to IST1 where the gate says so."""
    program = code64("""
        0f 0b  ; ud2
    """)
    for ist, top in ((0, KERNEL_STACK), (1, IST_STACK)):
        with Guest(program) as guest:
            guest.gate(6, b"\x6a\x00" + FRAME, HANDLERS, ist=ist)
            guest.user(CODE, rflags=0x202)
            r = guest.finish()
            error, rip, cs, rflags, rsp, ss = frame(guest)
            assert (error, rip, cs, rsp, ss) == (0, CODE, USER_CODE | 3, STACK, USER_DATA | 3)
            assert rflags & 0x202 == 0x202
            assert r.rsp == top and r.cs.selector == CODE64 and r.cpl == 0


@pytest.mark.parametrize("first", ["#PF", pytest.param("#GP of WRMSR", marks=pytest.mark.lost("faults of MSRs"))])
def test_an_exception_in_the_delivery_of_one_is_a_double_fault(first: str) -> None:
    """#PF and #GP whose gate is not present: #NP behind them makes a #DF, error code 0 (SDM table 6-5)."""
    program = (
        code64("""
            8b 04 25 00 00 00 40  ; mov eax, [0x40000000]
    """)
        if first == "#PF"
        else code64("""
            b9 78 56 34 12  ; mov ecx, 0x12345678
            0f 30           ; wrmsr
    """)
    )
    with Guest(program) as guest:
        for vector in (13, 14):
            guest.gate(vector, b"\xf4", HANDLERS + 0x100)
            guest.memory.write(IDT + 16 * vector + 5, b"\x0e")
        guest.gate(11, b"\xf4", HANDLERS + 0x100)
        guest.gate(8, FRAME, HANDLERS, ist=1)
        guest.finish()
        assert frame(guest, 2) == (0, CODE if first == "#PF" else CODE + 5)
        if first == "#PF":
            assert guest.vcpu.registers.cr2 == WINDOW


def test_a_benign_exception_whose_gate_is_missing_is_a_segment_not_present() -> None:
    """#UD, then #NP: one after the other, no #DF. The error code has the gate's index."""
    with Guest(b"\x90\x0f\x0b") as guest:
        guest.gate(6, b"\xf4", HANDLERS + 0x100)
        guest.memory.write(IDT + 16 * 6 + 5, b"\x0e")
        guest.gate(11, FRAME, HANDLERS)
        guest.finish()
        error, rip = frame(guest, 2)
        assert (error & ~1, rip) == (6 * 8 + 2, CODE + 1)


@pytest.mark.lost("faults of MSRs")
def test_many_exceptions_leave_nothing_behind() -> None:
    """INT3, #UD and a trapped RDMSR in turn, 10,000 times: each comes back where it must."""
    program = code64("""
        bb 10 27 00 00  ; mov ebx, 10000
        cc              ; int3
        0f 0b           ; ud2
        b9 1b 00 00 00  ; mov ecx, 0x1b
        0f 32           ; rdmsr
        ff cb           ; dec ebx
        75 f2           ; jnz .-12
        f4              ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(
            3,
            code64("""
                48 ff c6  ; inc rsi
                48 cf     ; iretq
        """),
            HANDLERS,
        )
        guest.gate(
            6,
            code64("""
                48 ff c5        ; inc rbp
                48 83 04 24 02  ; add qword ptr [rsp], 2
                48 cf           ; iretq
        """),
            HANDLERS + 0x100,
        )
        guest.gate(
            13,
            code64("""
                49 ff c0        ; inc r8
                48 83 c4 08     ; add rsp, 8
                48 83 04 24 02  ; add qword ptr [rsp], 2
                48 cf           ; iretq
        """),
            HANDLERS + 0x200,
        )
        r = guest.finish()
        assert (r.rsi, r.rbp, r.r8, r.rsp) == (10_000, 10_000, 10_000, STACK)


def test_a_single_step_over_a_trapped_instruction_traps_behind_it() -> None:
    """TF: #DB behind each instruction, the RDMSR that leaves to the monitor too, with DR6.BS set."""
    program = code64("""
        b9 77 02 00 00  ; mov ecx, 0x277
        68 02 01 00 00  ; push 0x102
        9d              ; popfq
        90              ; nop
        0f 32           ; rdmsr
        90              ; nop
        6a 02           ; push 2
        9d              ; popfq
        f4              ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(
            1,
            code64("""
                48 8b 04 24  ; mov rax, [rsp]
                48 ab        ; stosq
                0f 21 f0     ; mov rax, dr6
                48 ab        ; stosq
                48 cf        ; iretq
        """),
            HANDLERS,
        )
        r = guest.finish()
        steps = [guest.word(16 * index) - CODE for index in range(r.rdi - DATA >> 4)]
        assert steps == [12, 14, 15, 17, 18]
        assert all(guest.word(16 * index + 8) & 1 << 14 for index in range(len(steps)))


# System calls.

SYSCALL_SETUP = code64("""
    b9 81 00 00 c0  ; mov ecx, 0xc0000081
    ba 08 00 1b 00  ; mov edx, 0x001b0008
    31 c0           ; xor eax, eax
    0f 30           ; wrmsr
    ff c1           ; inc ecx
    b8 00 10 01 00  ; mov eax, 0x11000
    31 d2           ; xor edx, edx
    0f 30           ; wrmsr
    b9 84 00 00 c0  ; mov ecx, 0xc0000084
    b8 00 06 04 00  ; mov eax, 0x40600
    0f 30           ; wrmsr
    6a 23           ; push 0x23
    68 00 c0 01 00  ; push 0x1c000
    68 93 0e 04 00  ; push 0x40e93
    6a 2b           ; push 0x2b
    68 00 01 01 00  ; push 0x10100
    48 cf           ; iretq
""")
"""STAR, LSTAR = HANDLERS, FMASK = IF DF AC; then to CPL 3 at CODE + 0x100 with CF, AF, SF, IF, DF, OF and AC set."""


def test_syscall_and_sysret() -> None:
    """RCX has the return address, R11 the flags; FMASK's bits are cleared; SYSRET brings all of it back."""
    with Guest(SYSCALL_SETUP) as guest:
        guest.memory.write(CODE + 0x100, b"\x0f\x05\xcd\x80")  # SYSCALL; INT 0x80
        guest.memory.write(
            HANDLERS,
            code64("""
                48 89 0c 25 00 01 03 00  ; mov [0x30100], rcx
                4c 89 1c 25 08 01 03 00  ; mov [0x30108], r11
                48 89 24 25 20 01 03 00  ; mov [0x30120], rsp
                48 c7 c4 00 e0 01 00     ; mov rsp, 0x1e000
                9c                       ; pushfq
                8f 04 25 10 01 03 00     ; pop qword ptr [0x30110]
                8c c8                    ; mov eax, cs
                66 89 04 25 18 01 03 00  ; mov [0x30118], ax
                8c d0                    ; mov eax, ss
                66 89 04 25 1a 01 03 00  ; mov [0x3011a], ax
                31 c0                    ; xor eax, eax
                48 8b 24 25 20 01 03 00  ; mov rsp, [0x30120]
                48 0f 07                 ; sysretq
        """),
        )
        guest.gate(0x80, b"\x6a\x00" + FRAME, HANDLERS + 0x100, dpl=3)
        guest.finish()
        assert guest.word(0x100) == CODE + 0x102
        assert guest.word(0x108) == 0x40E93
        assert guest.word(0x110) == 0x40E93 & ~0x40600
        assert guest.word(0x118, 4) == DATA64 << 16 | CODE64
        assert frame(guest) == (0, CODE + 0x104, USER_CODE | 3, 0x40E93, 0x1C000, USER_DATA | 3)


def test_syscall_while_efer_has_it_off_is_undefined() -> None:
    """EFER.SCE = 0: #UD at the SYSCALL."""
    with Guest(b"\x90\x0f\x05") as guest:
        guest.gate(6, b"\x6a\x00" + FRAME, HANDLERS)
        guest.user(CODE, efer=0xD00)
        guest.finish()
        assert frame(guest, 3) == (0, CODE + 1, USER_CODE | 3)


SYSENTER_SETUP = code64("""
    b9 74 01 00 00  ; mov ecx, 0x174
    b8 08 00 00 00  ; mov eax, 8
    31 d2           ; xor edx, edx
    0f 30           ; wrmsr
    ff c1           ; inc ecx
    b8 00 e0 01 00  ; mov eax, 0x1e000
    0f 30           ; wrmsr
    ff c1           ; inc ecx
    b8 00 10 01 00  ; mov eax, 0x11000
    0f 30           ; wrmsr
    f4              ; hlt
""")
"""SYSENTER_CS = CODE64, SYSENTER_ESP, SYSENTER_EIP = HANDLERS."""


def test_sysenter_and_sysexit() -> None:
    """CS, SS, RIP and RSP from the MSRs, IF cleared; SYSEXIT takes RIP and RSP from RDX and RCX."""
    with Guest(SYSENTER_SETUP) as guest:
        guest.finish()
        guest.memory.write(CODE + 0x100, b"\x0f\x34\xf4\xf4\xcd\x80")  # SYSENTER; at + 4 INT 0x80
        guest.memory.write(
            HANDLERS,
            code64("""
                48 89 24 25 00 01 03 00  ; mov [0x30100], rsp
                8c c8                    ; mov eax, cs
                66 89 04 25 08 01 03 00  ; mov [0x30108], ax
                8c d0                    ; mov eax, ss
                66 89 04 25 0a 01 03 00  ; mov [0x3010a], ax
                9c                       ; pushfq
                8f 04 25 10 01 03 00     ; pop qword ptr [0x30110]
                48 c7 c2 04 01 01 00     ; mov rdx, 0x10104
                48 c7 c1 00 c0 01 00     ; mov rcx, 0x1c000
                48 0f 35                 ; rex.W sysexit
        """),
        )
        guest.gate(0x80, b"\x6a\x00" + FRAME, HANDLERS + 0x100, dpl=3)
        guest.user(CODE + 0x100, rflags=0x602)
        guest.finish()
        assert guest.word(0x100) == 0x1E000
        assert guest.word(0x108, 4) == DATA64 << 16 | CODE64
        assert guest.word(0x110) == 0x402
        assert frame(guest) == (0, CODE + 0x106, CODE64 + 32 | 3, 0x402, 0x1C000, CODE64 + 40 | 3)


def test_sysenter_that_was_not_set_up_is_a_gp() -> None:
    """SYSENTER_CS = 0, as after reset: #GP(0) at the SYSENTER."""
    with Guest(b"\x90\x0f\x34") as guest:
        guest.gate(13, FRAME, HANDLERS)
        guest.user(CODE)
        guest.finish()
        assert frame(guest, 3) == (0, CODE + 1, USER_CODE | 3)


def test_sysenter_in_a_guest_without_an_idt_is_a_shutdown() -> None:
    """Its #GP cannot be delivered, nor what follows from that."""
    with Guest(b"\x90\x0f\x34") as guest:
        guest.set(idt_limit=0)
        for _ in range(2):
            assert guest.machine.run(timeout=20) == ShutdownExit(CODE + 1)
