"""Interrupts, NMIs, exceptions and system calls of a guest that runs with guest-mode intercepts.

By the Intel SDM vol. 3A, chapter 6, and for SYSCALL and SYSRET vol. 2B.
"""

from __future__ import annotations

import threading

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
    RealModeGuest,
    Vectors,
    code16,
    code64,
)

from iobus.bus import Device
from iobus.exits import HltExit, KickExit

HANDLERS = CODE + 0x1000
LOG_RIP = code64("""
    48 8b 04 24  ; mov rax, [rsp]
    48 ab        ; stosq
    48 cf        ; iretq
""")
"""A handler that notes where it came from."""


class Port(Device):
    """Calls a function at every write, with the value."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        self.function = function

    def write(self, offset: int, size: int, value: int) -> None:
        self.function(value)


def log_vector(vector: int) -> bytes:
    """A handler that notes its vector: MOV AL, vector; STOSB; IRETQ."""
    return bytes((0xB0, vector, 0xAA, 0x48, 0xCF))


# The interrupt window.


@pytest.mark.parametrize(
    ("opening", "length"),
    [
        (code64("""
            fb     ; sti
            ff c1  ; inc ecx
        """), 3),
        (code64("""
            68 02 02 00 00  ; push 0x202
            9d              ; popfq
        """), 6),
    ],
    ids=["STI and its shadow", "POPF"],
)  # fmt: skip
def test_a_waiting_interrupt_comes_exactly_when_the_window_opens(opening: bytes, length: int) -> None:
    """It is taken at the first instruction boundary at which it may be, and not one later."""
    program = opening + code64("""
        ff c1  ; inc ecx
        ff c1  ; inc ecx
        fa     ; cli
        f4     ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(0x40, LOG_RIP, HANDLERS)
        guest.set(rdx=DATA64)
        Vectors(guest.machine, 0x40)
        guest.finish()
        assert guest.word() == CODE + length


def test_sti_followed_by_cli_opens_no_window() -> None:
    """The shadow covers the CLI: the interrupt waits on."""
    program = code64("""
        fb  ; sti
        fa  ; cli
        f4  ; hlt
    """)
    with Guest(program) as guest:
        controller = Vectors(guest.machine, 0x40)
        guest.finish()
        assert controller.waiting


def test_sti_and_hlt_is_woken_behind_the_hlt() -> None:
    """The idle loop's idiom: an interrupt that waits already is taken with the HLT done."""
    program = code64("""
        fb  ; sti
        f4  ; hlt
        fa  ; cli
        f4  ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(0x40, LOG_RIP, HANDLERS)
        Vectors(guest.machine, 0x40)
        guest.finish()
        assert guest.word() == CODE + 2


def test_interrupts_with_no_window_wait_for_iret() -> None:
    """A handler's interrupt gate masks; the next comes at its IRET, before the interrupted code goes on."""
    program = code64("""
        fb  ; sti
        90  ; nop
        90  ; nop
        fa  ; cli
        f4  ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(0x40, LOG_RIP, HANDLERS)
        controller = Vectors(guest.machine, *[0x40] * 5)
        guest.finish()
        assert guest.memory.read(DATA, 40) == (CODE + 2).to_bytes(8, "little") * 5
        assert not controller.waiting


def test_all_vectors_are_delivered_once_and_in_the_controllers_order() -> None:
    """224 interrupts of as many vectors."""
    program = code64("""
        fb                 ; sti
        81 ff e0 00 03 00  ; cmp edi, 0x300e0
        75 f8              ; jne .-6
        fa                 ; cli
        f4                 ; hlt
    """)
    order = [0x20 + 75 * index % 224 for index in range(224)]
    with Guest(program) as guest:
        for vector in order:
            guest.gate(vector, log_vector(vector), HANDLERS + 16 * vector)
        Vectors(guest.machine, *order)
        guest.finish()
        assert guest.memory.read(DATA, 225) == bytes((*order, 0))


def test_interrupts_from_another_thread_are_all_counted() -> None:
    """10,000 requests against a guest that spins, at any moment: it counts 10,000."""
    program = code64("""
        fb                 ; sti
        48 ff c1           ; inc rcx
        81 3f 10 27 00 00  ; cmp dword ptr [rdi], 10000
        75 f5              ; jne .-9
        fa                 ; cli
        f4                 ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(
            0x40,
            code64("""
                ff 07  ; inc dword ptr [rdi]
                48 cf  ; iretq
        """),
            HANDLERS,
        )
        controller = Vectors(guest.machine)

        def requests() -> None:
            for _ in range(10_000):
                controller.request(0x40)

        thread = threading.Thread(target=requests)
        thread.start()
        guest.finish()
        thread.join()
        assert guest.word(size=4) == 10_000


def test_interrupts_and_kicks_do_not_disturb_each_other() -> None:
    """Kicks from one thread and interrupts from another: every interrupt is counted, however often it stops."""
    program = code64("""
        fb                 ; sti
        48 ff c1           ; inc rcx
        81 3f d0 07 00 00  ; cmp dword ptr [rdi], 2000
        75 f5              ; jne .-9
        fa                 ; cli
        f4                 ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(
            0x40,
            code64("""
                ff 07  ; inc dword ptr [rdi]
                48 cf  ; iretq
        """),
            HANDLERS,
        )
        controller = Vectors(guest.machine)
        done, stopped = threading.Event(), threading.Semaphore()

        def requests() -> None:
            for _ in range(20):
                stopped.acquire()
                for _ in range(100):
                    controller.request(0x40)

        def kicks() -> None:
            while not done.wait(0.0002):
                guest.vcpu.kick()

        threads = [threading.Thread(target=requests), threading.Thread(target=kicks)]
        for thread in threads:
            thread.start()
        while isinstance(exit := guest.vcpu.run(), KickExit):
            stopped.release()
        done.set()
        for thread in threads:
            thread.join()
        assert exit == HltExit()
        assert guest.word(size=4) == 2000


def test_interrupts_in_real_mode_go_through_the_vector_table() -> None:
    """At address 0, 4 bytes each; INT and an external interrupt alike."""
    program = code16("""
        cd 21  ; int 0x21
        fb     ; sti
        90     ; nop
        fa     ; cli
        f4     ; hlt
    """)
    with RealModeGuest(program) as guest:
        for vector in (0x21, 0x40):
            guest.memory.store(4 * vector, 4, 0x6000 + vector)
            handler = code16("""
                b0 00        ; mov al, 0
                00 06 00 05  ; add [0x500], al
                cf           ; iret
            """)
            guest.memory.write(0x6000 + vector, handler.replace(b"\xb0\0", bytes((0xB0, vector))))
        Vectors(guest.machine, 0x40)
        guest.finish()
        assert guest.memory.load(0x500, 1) == 0x61


# NMIs.


def test_an_nmi_within_an_nmi_waits_for_iret() -> None:
    """A second one is held through everything else that wants the CPU's attention, and none is lost."""
    program = code64("""
        83 3c 25 00 00 03 00 02  ; cmp dword ptr [0x30000], 2
        75 f6                    ; jne .-8
        f4                       ; hlt
    """)
    handler = code64("""
        ff 04 25 00 00 03 00  ; inc dword ptr [0x30000]
        b0 01                 ; mov al, 1
        e6 10                 ; out 0x10, al
        b9 e8 03 00 00        ; mov ecx, 1000
        ff c9                 ; dec ecx
        75 fc                 ; jnz .-2
        b0 02                 ; mov al, 2
        e6 10                 ; out 0x10, al
        b9 e8 03 00 00        ; mov ecx, 1000
        ff c9                 ; dec ecx
        75 fc                 ; jnz .-2
        8b 04 25 00 00 03 00  ; mov eax, [0x30000]
        89 04 85 04 00 03 00  ; mov [0x30004 + rax * 4], eax
        48 cf                 ; iretq
    """)
    with Guest(program) as guest:
        guest.gate(2, handler, HANDLERS)
        nmis = iter([guest.vcpu.nmi])
        actions = {1: lambda: next(nmis, int)(), 2: guest.vcpu.interrupt}
        guest.machine.pio.attach(Port(lambda value: actions[value]()), 0x10, 1)
        guest.vcpu.nmi()
        guest.finish()
        assert [guest.word(at, 4) for at in (0, 8, 12)] == [2, 1, 2]


def test_an_nmi_comes_before_an_interrupt() -> None:
    """Both wait and both may be taken (SDM table 6-2): the interrupt sees the NMI's handler done."""
    program = code64("""
        fb  ; sti
        90  ; nop
        90  ; nop
        fa  ; cli
        f4  ; hlt
    """)
    with Guest(program) as guest:
        for vector in (2, 0x40):
            guest.gate(vector, log_vector(vector), HANDLERS + 16 * vector)
        Vectors(guest.machine, 0x40)
        guest.vcpu.nmi()
        guest.finish()
        assert guest.memory.read(DATA, 3) == bytes((2, 0x40, 0))


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


@pytest.mark.parametrize("first", ["#PF", "#GP of WRMSR"])
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
