"""Several vCPUs on the Unicorn engine: locked instructions, what is each one's own, interrupts between them.

They take turns, with guest-mode intercepts only. How they start and stop is in test_vcpu_runs.py. Where a test says
that there are many switches, the vCPUs switch at each PAUSE, or at the end of slices that are made very short.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from rig import CODE, PAGE_TABLE, WINDOW, SmpGuest, code64

from iobus.bus import Device
from iobus.engines.unicorn import runner
from iobus.exits import PowerOffExit
from iobus.irq import DeliveryMode, Message
from iobus.machine import Machine

HANDLERS = CODE + 0x1000


@pytest.fixture(params=["at PAUSE", "in short slices"])
def switching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Many switches, in two ways: `way_of` puts it into a program."""
    if request.param == "in short slices":
        monkeypatch.setattr(runner, "SLICE", 50_000)
    return str(request.param)


def way_of(switching: str, program: bytes) -> bytes:
    """`program` with its PAUSEs, or with jumps to the next instruction instead: a new block all the same."""
    return program if switching == "at PAUSE" else program.replace(b"\xf3\x90", b"\xeb\x00")


# What an instruction does is whole.

COUNTERS = code64("""
    b8 01 00 00 00  ; again: mov eax, 1
    f0 0f c1 07     ; lock xadd [rdi], eax
    8b 47 08        ; mov eax, [rdi + 8]
    f3 90           ; retry: pause
    8d 50 01        ; lea edx, [rax + 1]
    f0 0f b1 57 08  ; lock cmpxchg [rdi + 8], edx
    75 f4           ; jnz retry
    ff c9           ; dec ecx
    75 e4           ; jnz again
    f4              ; hlt
""")


@pytest.mark.parametrize("cpus", [2, 4, 16])
def test_locked_counters_are_exact(switching: str, cpus: int) -> None:
    """LOCK XADD, and LOCK CMPXCHG with switches between its load and itself: no count is lost or made twice."""
    count = 3_000 // cpus if switching == "at PAUSE" else 400_000 // cpus
    with SmpGuest(way_of(switching, COUNTERS), cpus=cpus) as guest:
        guest.set_all(rcx=count)
        guest.finish()
        assert (guest.word(0), guest.word(8)) == (cpus * count, cpus * count)


def test_a_spin_lock_excludes(switching: str) -> None:
    """XCHG takes it; within, a count is loaded, raised and stored in three blocks of code."""
    program = code64("""
        b8 01 00 00 00     ; again: mov eax, 1
        87 07              ; xchg [rdi], eax
        85 c0              ; test eax, eax
        74 04              ; jz taken
        f3 90              ; pause
        eb f1              ; jmp again
        8b 47 08           ; taken: mov eax, [rdi + 8]
        f3 90              ; pause
        ff c0              ; inc eax
        89 47 08           ; mov [rdi + 8], eax
        c7 07 00 00 00 00  ; mov dword ptr [rdi], 0
        ff c9              ; dec ecx
        75 dd              ; jnz again
        f4                 ; hlt
    """)
    with SmpGuest(way_of(switching, program), cpus=3) as guest:
        guest.set_all(rcx=1_000)
        guest.finish()
        assert guest.word(8) == 3_000


def test_each_vcpu_keeps_what_is_its_own(switching: str) -> None:
    """XMM and x87 registers, flags, MSRs kept by the library and by us, and its page tables, over many switches."""
    program = code64("""
        66 49 0f 6e ef  ; movq xmm5, r15
        41 57           ; push r15
        df 2c 24        ; fild qword ptr [rsp]
        b9 00 01 00 c0  ; mov ecx, 0xc0000100 (FS base)
        44 89 f8        ; mov eax, r15d
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        b9 03 01 00 c0  ; mov ecx, 0xc0000103 (TSC_AUX)
        0f 30           ; wrmsr
        b9 77 02 00 00  ; mov ecx, 0x277 (PAT)
        0f 30           ; wrmsr
        45 89 ee        ; mov r14d, r13d
        f3 90           ; again: pause
        66 48 0f 7e e8  ; movq rax, xmm5
        4c 39 f8        ; cmp rax, r15
        75 48           ; jne bad
        b9 00 01 00 c0  ; mov ecx, 0xc0000100
        0f 32           ; rdmsr
        44 39 f8        ; cmp eax, r15d
        75 3c           ; jne bad
        0f 01 f9        ; rdtscp
        44 39 f9        ; cmp ecx, r15d
        75 34           ; jne bad
        b9 77 02 00 00  ; mov ecx, 0x277
        0f 32           ; rdmsr
        44 39 f8        ; cmp eax, r15d
        75 28           ; jne bad
        8b 06           ; mov eax, [rsi]
        44 39 f8        ; cmp eax, r15d
        75 21           ; jne bad
        db 54 24 f8     ; fist dword ptr [rsp - 8]
        44 39 7c 24 f8  ; cmp [rsp - 8], r15d
        75 16           ; jne bad
        f9              ; stc
        f3 90           ; pause
        73 11           ; jnc bad
        fd              ; std
        f3 90           ; pause
        9c              ; pushfq
        58              ; pop rax
        fc              ; cld
        f6 c4 04        ; test ah, 4
        74 06           ; jz bad
        41 ff ce        ; dec r14d
        75 ad           ; jnz again
        f4              ; hlt
        f0 ff 07        ; bad: lock inc dword ptr [rdi]
        f4              ; hlt
    """)
    tables = 0x50000
    with SmpGuest(way_of(switching, program), cpus=2) as guest:
        guest.set_all(rsi=WINDOW, r13=500 if switching == "at PAUSE" else 20_000)
        for vcpu in guest.vcpus:  # four levels of its own for WINDOW, which differ in the page they end at
            own = tables + 0x10000 * vcpu.index
            for level, old in enumerate((0x1000, 0x2000, 0x4000, PAGE_TABLE)):
                guest.memory.write(own + 0x1000 * level, guest.memory.read(old, 0x1000))
            for level, index in ((0, 0), (1, 1), (2, 0), (3, 0)):
                guest.memory.store(own + 0x1000 * level + 8 * index, 8, own + 0x1000 * (level + 1) | 7)
            guest.memory.store(own + 0x4000, 4, vcpu.index)
            registers = vcpu.registers
            registers.cr3 = own
            vcpu.registers = registers
        guest.finish()
        assert guest.word() == 0
        assert [vcpu.registers.r14 for vcpu in guest.vcpus] == [0, 0]
        assert [vcpu.registers.fs.base for vcpu in guest.vcpus] == [0, 1]


def test_a_breakpoint_is_its_vcpus_own(switching: str) -> None:
    """Both run the same code, of which one has armed an instruction with DR0 and DR7; its handler steps over it."""
    program = code64("""
        48 8d 05 14 00 00 00  ; lea rax, [rip + here]
        0f 23 c0              ; mov dr0, rax
        b8 02 04 00 00        ; mov eax, 0x402
        45 85 ff              ; test r15d, r15d
        74 03                 ; jz again
        0f 23 f8              ; mov dr7, rax
        f3 90                 ; again: pause
        eb 00                 ; jmp here
        66 90                 ; here: xchg ax, ax
        ff c9                 ; dec ecx
        75 f6                 ; jnz again
        f4                    ; hlt
    """)
    handler = code64("""
        ff 07           ; inc dword ptr [rdi]
        4c 01 7f 08     ; add [rdi + 8], r15
        48 83 04 24 02  ; add qword ptr [rsp], 2
        48 cf           ; iretq
    """)
    count = 50
    with SmpGuest(way_of(switching, program), cpus=2) as guest:
        guest.gate(1, handler, HANDLERS)
        guest.set_all(rcx=count)
        guest.finish()
        assert (guest.word(0, 4), guest.word(8)) == (count, count)


def test_code_that_another_vcpu_patches_is_seen(switching: str) -> None:
    """One writes a number into a function's MOV and says so; the other calls it and gets that number, each time."""
    program = code64("""
        45 85 ff  ; test r15d, r15d
        75 13     ; jnz runner
        ff c0     ; again: inc eax
        89 46 01  ; mov [rsi + 1], eax
        89 07     ; mov [rdi], eax
        f3 90     ; wait: pause
        39 47 04  ; cmp [rdi + 4], eax
        75 f9     ; jne wait
        ff c9     ; dec ecx
        75 ee     ; jnz again
        f4        ; hlt
        f3 90     ; runner: pause
        8b 17     ; mov edx, [rdi]
        3b 57 04  ; cmp edx, [rdi + 4]
        74 f7     ; je runner
        ff d6     ; call rsi
        89 47 04  ; mov [rdi + 4], eax
        39 d0     ; cmp eax, edx
        75 05     ; jne bad
        ff c9     ; dec ecx
        75 ea     ; jnz runner
        f4        ; hlt
        ff 47 08  ; bad: inc dword ptr [rdi + 8]
        f4        ; hlt
    """)
    with SmpGuest(way_of(switching, program), cpus=2) as guest:
        guest.memory.write(HANDLERS, b"\xb8\0\0\0\0\xc3")
        guest.set_all(rsi=HANDLERS, rcx=500)
        guest.finish()
        assert [guest.word(at, 4) for at in (0, 4, 8)] == [500, 500, 0]


def test_the_tsc_never_goes_back_between_vcpus() -> None:
    """Two pass it to each other: neither reads less than the other has read before."""
    program = code64("""
        0f 31           ; again: rdtsc
        48 c1 e2 20     ; shl rdx, 32
        48 09 d0        ; or rax, rdx
        48 3b 07        ; cmp rax, [rdi]
        72 0b           ; jb bad
        48 89 07        ; mov [rdi], rax
        f3 90           ; pause
        ff c9           ; dec ecx
        75 e9           ; jnz again
        f4              ; hlt
        90              ; nop
        f0 ff 47 08     ; bad: lock inc dword ptr [rdi + 8]
        f4              ; hlt
    """)
    with SmpGuest(program, cpus=2) as guest:
        guest.set_all(rcx=2_000)
        guest.finish()
        assert (guest.word(8), [vcpu.registers.rcx for vcpu in guest.vcpus]) == (0, [0, 0])


# Interrupts between them.

PING = code64("""
    c7 83 b0 00 00 00 00 00 00 00  ; mov dword ptr [rbx + 0xb0], 0 (EOI)
    8b 07                          ; mov eax, [rdi]
    44 39 c8                       ; cmp eax, r9d
    73 15                          ; jae end
    ff 07                          ; inc dword ptr [rdi]
    44 89 83 10 03 00 00           ; mov [rbx + 0x310], r8d (ICR)
    c7 83 00 03 00 00 40 00 00 00  ; mov dword ptr [rbx + 0x300], 0x40
    48 cf                          ; iretq
    e6 10                          ; end: out 0x10, al
    48 cf                          ; iretq
""")
"""A handler of vector 0x40 that counts and sends it on, R9 times in all."""
READY = code64("""
    fb           ; sti
    f0 ff 47 08  ; lock inc dword ptr [rdi + 8]
""")
WAITS = {
    "halted": code64("""
        f4     ; again: hlt
        eb fd  ; jmp again
    """),
    "in PAUSE": code64("""
        f3 90  ; again: pause
        eb fc  ; jmp again
    """),
    "spinning": code64("""
        eb fe  ; jmp .
    """),
}


class Stop(Device):
    """Stops the machine at a write."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def write(self, offset: int, size: int, value: int) -> None:
        self.machine.stop(PowerOffExit())


@pytest.mark.parametrize("cpus", [2, 5])
@pytest.mark.parametrize("wait", list(WAITS))
def test_interrupts_go_from_one_to_the_next_at_once(wait: str, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector goes round among vCPUs that wait somehow. None has to wait for a slice's end: there is none by then."""
    count = 300
    with SmpGuest(READY + WAITS[wait], cpus=cpus) as guest:
        guest.machine.pio.attach(Stop(guest.machine), 0x10, 1)
        guest.gate(0x40, PING, HANDLERS)
        guest.set_all(r9=count)
        for vcpu in guest.vcpus:
            registers = vcpu.registers
            registers.r8 = (vcpu.index + 1) % cpus << 24
            vcpu.registers = registers

        turns = guest.vcpu.executor.runner  # type: ignore[attr-defined]
        slicing = threading.Lock()
        sliced = True

        def slice_ended(real: Callable[[], None] = turns._slicer._look) -> None:
            with slicing:
                if sliced:
                    real()

        turns._slicer._look = slice_ended

        def begin() -> None:
            nonlocal sliced
            while guest.word(8, 4) < cpus:
                time.sleep(0.001)
            monkeypatch.setattr(runner, "SLICE", 3_600_000_000_000)
            with slicing:
                sliced = False
            while turns.attention:  # of the last slice that has ended
                time.sleep(0.001)
            with guest.machine.lock:
                guest.lapics[0].accept(Message(0, False, DeliveryMode.FIXED, 0x40))

        thread = threading.Thread(target=begin)
        thread.start()
        assert guest.machine.run(timeout=60) == PowerOffExit()
        thread.join()
        assert guest.word(0, 4) == count


def test_who_interrupts_a_busy_vcpu_does_not_wait_for_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One interrupts another that never gives way and spins for a word that the handler writes: 500 times.

    The other has the turn for as long as a handler needs, and then the first goes on. With a slice of 200 ms each time
    that would take 100 s; a busy host makes one or the other time such a one.
    """
    monkeypatch.setattr(runner, "SLICE", 200_000_000)
    program = code64("""
        fb                             ; sti
        45 85 ff                       ; test r15d, r15d
        75 30                          ; jnz other
        ff 47 10                       ; inc dword ptr [rdi + 16]
        f3 90                          ; again: pause
        83 7f 08 00                    ; cmp dword ptr [rdi + 8], 0
        74 f8                          ; je again
        c7 83 10 03 00 00 00 00 00 01  ; mov dword ptr [rbx + 0x310], 0x1000000
        c7 07 00 00 00 00              ; next: mov dword ptr [rdi], 0
        c7 83 00 03 00 00 40 00 00 00  ; mov dword ptr [rbx + 0x300], 0x40
        83 3f 00                       ; spin: cmp dword ptr [rdi], 0
        74 fb                          ; je spin
        ff c9                          ; dec ecx
        75 e7                          ; jnz next
        e6 10                          ; out 0x10, al
        f3 90                          ; other: pause
        83 7f 10 00                    ; cmp dword ptr [rdi + 16], 0
        74 f8                          ; je other
        ff 47 08                       ; inc dword ptr [rdi + 8]
        f3 90                          ; pause
        eb fe                          ; jmp .
    """)
    handler = code64("""
        c7 07 01 00 00 00              ; mov dword ptr [rdi], 1
        c7 83 b0 00 00 00 00 00 00 00  ; mov dword ptr [rbx + 0xb0], 0
        48 cf                          ; iretq
    """)
    with SmpGuest(program, cpus=2) as guest:
        guest.machine.pio.attach(Stop(guest.machine), 0x10, 1)
        guest.gate(0x40, handler, HANDLERS)
        guest.set_all(rcx=500)
        assert guest.machine.run(timeout=60) == PowerOffExit()
        assert guest.vcpu.registers.rcx == 0


def test_an_nmi_wakes_a_vcpu_that_nothing_else_can() -> None:
    """One has halted with interrupts off; the other's NMI message runs its handler, after which it halts again."""
    program = code64("""
        45 85 ff                       ; test r15d, r15d
        75 1d                          ; jnz end
        f3 90                          ; wait: pause
        83 7f 08 00                    ; cmp dword ptr [rdi + 8], 0
        74 f8                          ; je wait
        c7 83 10 03 00 00 00 00 00 01  ; mov dword ptr [rbx + 0x310], 0x1000000
        c7 83 00 03 00 00 00 44 00 00  ; mov dword ptr [rbx + 0x300], 0x4400
        f4                             ; hlt
        c7 47 08 01 00 00 00           ; end: mov dword ptr [rdi + 8], 1
        f4                             ; hlt
        f4                             ; hlt
    """)
    with SmpGuest(program, cpus=2) as guest:
        handler = code64("""
            4c 89 3f        ; mov [rdi], r15
            ff 47 04        ; inc dword ptr [rdi + 4]
            48 cf           ; iretq
        """)
        guest.gate(2, handler, HANDLERS)
        guest.finish()
        assert guest.word() == 1 << 32 | 1
        assert guest.vcpus[1].registers.rip == CODE + len(program)
