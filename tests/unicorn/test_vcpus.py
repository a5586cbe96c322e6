"""Several vCPUs on the Unicorn engine: locked instructions, interrupts between them, INIT and start-up, stops.

They take turns, with guest-mode intercepts only. Where a test says that there are many switches, the vCPUs
switch at each PAUSE, or at the end of slices that are made very short.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from rig import CODE, PAGE_TABLE, WINDOW, SmpGuest, code16, code64

from iobus.bus import Device, DeviceError
from iobus.cpu_registers import Registers
from iobus.engines.unicorn import runner
from iobus.engines.unicorn.cpu import UnicornCpu
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import EngineError, HltExit, KickExit, MmioExit, PowerOffExit, TimeoutExit
from iobus.irq import DeliveryMode, Message
from iobus.machine import Machine

HANDLERS = CODE + 0x1000
SPIN = code64("""
    48 ff c1  ; inc rcx
    eb fb     ; jmp .-3
""")


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


# INIT and start-up.

ICR_WAIT = """
        f3 90                          ; wait: pause
        39 0f                          ; cmp [rdi], ecx
        75 fa                          ; jne wait
        f4                             ; hlt
"""


START_UP = code64(f"""
    45 85 ff                       ; test r15d, r15d
    75 fe                          ; jnz .
    c7 83 00 03 00 00 00 45 0c 00  ; mov dword ptr [rbx + 0x300], 0xc4500
    c7 83 00 03 00 00 08 46 0c 00  ; mov dword ptr [rbx + 0x300], 0xc4608
    c7 83 00 03 00 00 08 46 0c 00  ; mov dword ptr [rbx + 0x300], 0xc4608
    {ICR_WAIT}
""")
"""The first vCPU sends INIT and twice start-up at 0x8000 to all others, and waits for a count of RCX in DATA."""


STARTED = code16("""
    66 b8 01 00 00 00        ; mov eax, 1
    bb 00 30                 ; mov bx, 0x3000
    8e db                    ; mov ds, bx
    66 f0 0f c1 06 00 00     ; lock xadd [0], eax
    89 c3                    ; mov bx, ax
    8c 8f 00 01              ; mov [bx + 0x100], cs
    f4                       ; hlt
""")
"""Real-mode code that counts itself at 0x30000, and leaves its CS above."""


def test_sixteen_vcpus_start() -> None:
    """INIT and two start-up messages to all others start each of them once, in real mode, at the vector's page."""
    with SmpGuest(START_UP, cpus=16) as guest:
        guest.set_all(rcx=15)
        guest.memory.write(0x8000, STARTED)
        guest.finish()
        assert guest.word() == 15
        for vcpu in guest.vcpus[1:]:
            r = vcpu.registers
            assert (r.cs.selector, r.cs.base, r.rip, r.cr0 & 1) == (0x800, 0x8000, len(STARTED), 0)


def test_vcpus_wait_until_they_are_started() -> None:
    """After a reset all but the first have nothing to run, and a start-up message without INIT does nothing more."""
    with SmpGuest(b"\xf4", cpus=3) as guest:
        guest.machine.reset()
        guest.start()
        guest.machine.reset()
        for vcpu in guest.vcpus[1:]:
            for _ in range(2):
                assert vcpu.run() == HltExit()
            before = vcpu.registers
            assert before == Registers(rdx=before.rdx, cr0=before.cr0)
        guest.memory.write(0x8000, STARTED)
        one, other = guest.vcpus[1:]
        one.startup(8)
        assert one.run() == HltExit()
        assert (guest.word(), one.registers.rip) == (1, len(STARTED))
        one.startup(8)
        assert one.run() == HltExit()
        assert (guest.word(), one.registers.rip) == (1, len(STARTED))
        assert other.run() == HltExit()
        assert other.registers == Registers(rdx=before.rdx, cr0=before.cr0)


def test_a_running_vcpu_takes_an_init() -> None:
    """Whatever it does: spinning with interrupts off it is stopped, and started somewhere else."""
    program = code64(f"""
        45 85 ff                       ; test r15d, r15d
        75 fe                          ; jnz .
        b9 01 00 00 00                 ; mov ecx, 1
        c7 83 10 03 00 00 00 00 00 01  ; mov dword ptr [rbx + 0x310], 0x1000000
        c7 83 00 03 00 00 00 45 00 00  ; mov dword ptr [rbx + 0x300], 0x4500
        c7 83 00 03 00 00 08 46 00 00  ; mov dword ptr [rbx + 0x300], 0x4608
        {ICR_WAIT}
    """)
    with SmpGuest(program, cpus=2) as guest:
        guest.memory.write(0x8000, STARTED)
        guest.finish()
        assert guest.word() == 1


@pytest.mark.parametrize("cpus", [1, 2])
def test_the_first_vcpus_own_init_takes_it_to_the_reset_vector(cpus: int) -> None:
    """It goes on there at once, with its registers as at reset."""
    program = code64("""
        c7 83 10 03 00 00 00 00 00 00  ; mov dword ptr [rbx + 0x310], 0
        c7 83 00 03 00 00 00 45 00 00  ; mov dword ptr [rbx + 0x300], 0x4500
        eb fe                          ; jmp .
    """)
    with SmpGuest(program, cpus=cpus) as guest:
        guest.memory.add(0xFFFF0000, 0x10000)
        guest.memory.write(0xFFFFFFF0, code16("f4 ; hlt"))
        for vcpu in guest.vcpus[1:]:
            vcpu.init()
        r = guest.finish()
        assert (r.rip, r.cs.base, r.cr0 & 1, r.rbx) == (0xFFF1, 0xFFFF0000, 0, 0)


def test_an_init_drops_no_error_of_a_device() -> None:
    """A device raises in the access that also brings an INIT: the run raises it, the next one starts anew."""

    class Broken(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            guest.vcpus[1].init()
            raise ZeroDivisionError("on purpose")

    program = code64("""
        45 85 ff  ; test r15d, r15d
        75 01     ; jnz other
        f4        ; hlt
        e6 10     ; other: out 0x10, al
        eb fe     ; jmp .
    """)
    with SmpGuest(program, cpus=2) as guest:
        guest.machine.pio.attach(Broken(), 0x10, 1)
        with pytest.raises(DeviceError, match="on purpose"):
            guest.machine.run(timeout=20)
        guest.finish()
        assert guest.vcpus[1].registers.rip == 0xFFF0


# Halted, kicked, stopped.


def test_halted_vcpus_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one of sixteen computes for half a second, not one of the others is given a turn after its HLT."""
    turns: Counter[int] = Counter()
    slice_ = UnicornCpu.slice

    def counted(cpu: UnicornCpu) -> None:
        turns[cpu.vcpu.index] += 1
        slice_(cpu)

    monkeypatch.setattr(UnicornCpu, "slice", counted)
    program = code64("""
        fb        ; sti
        45 85 ff  ; test r15d, r15d
        74 fe     ; jz .
        f4        ; hlt
    """)
    with SmpGuest(program, cpus=16) as guest:
        assert guest.machine.run(timeout=0.2) == TimeoutExit(0.2)
        while any(turns[index] == 0 for index in range(16)):
            guest.machine.run(timeout=0.1)
        assert all(vcpu.executor.halted for vcpu in guest.vcpus[1:])  # type: ignore[attr-defined]
        turns.clear()
        assert guest.machine.run(timeout=0.3) == TimeoutExit(0.3)
        assert set(turns) == {0}
        assert turns[0] < 50  # nobody to give way to: slices would be 150. A thread that begins or ends makes a turn


def test_all_vcpus_that_spin_get_their_share() -> None:
    """Of four that never give way each has run a tenth of the time at least."""
    with SmpGuest(SPIN, cpus=4) as guest:
        while True:
            assert guest.machine.run(timeout=0.2) == TimeoutExit(0.2)
            loops = [vcpu.registers.rcx for vcpu in guest.vcpus]
            if min(loops) * 10 > sum(loops):
                break


def test_one_vcpu_runs_alone_when_only_it_is_run() -> None:
    """`VCPU.run` runs that one; the others keep still."""
    with SmpGuest(SPIN, cpus=2) as guest:
        alarm = threading.Timer(0.05, guest.vcpus[1].kick)
        alarm.start()
        while guest.vcpus[1].registers.rcx == 0:
            assert guest.vcpus[1].run() == KickExit()
            guest.vcpus[1].kick()
        alarm.join()
        assert guest.vcpus[0].registers.rcx == 0


def test_each_kick_ends_its_vcpus_run_and_no_other() -> None:
    """Four vCPUs spin, each run by a thread; each is kicked a hundred times, at any moment."""
    count = 100
    with SmpGuest(SPIN, cpus=4) as guest:
        returned = [threading.Semaphore(0) for _ in guest.vcpus]
        exits: list[list[object]] = [[] for _ in guest.vcpus]

        def run(index: int) -> None:
            for _ in range(count):
                exits[index].append(guest.vcpus[index].run())
                returned[index].release()

        threads = [threading.Thread(target=run, args=(vcpu.index,)) for vcpu in guest.vcpus]
        for thread in threads:
            thread.start()
        for number in range(count):
            for index, vcpu in enumerate(guest.vcpus):
                vcpu.kick()
                assert returned[index].acquire(timeout=20), (number, index)
                assert len(exits[index]) == number + 1
        for thread in threads:
            thread.join()
        assert exits == [[KickExit()] * count] * 4


def test_a_machine_whose_vcpus_spin_is_stopped() -> None:
    """`Machine.stop` from another thread ends the run, and it can be run on."""
    with SmpGuest(SPIN, cpus=16) as guest:
        for _ in range(3):
            alarm = threading.Timer(0.05, guest.machine.stop, (PowerOffExit(),))
            alarm.start()
            assert guest.machine.run(timeout=20) == PowerOffExit()
            alarm.join()


# Devices.


class Faulty(Device):
    """Raises at every write."""

    def write(self, offset: int, size: int, value: int) -> None:
        raise ZeroDivisionError("on purpose")


OUTS = code64("""
    b8 01 00 00 00        ; mov eax, 1
    44 89 f9              ; mov ecx, r15d
    d3 e0                 ; shl eax, cl
    ba 10 00 00 00        ; mov edx, 0x10
    44 01 fa              ; add edx, r15d
    ee                    ; out dx, al
    f0 09 07              ; lock or [rdi], eax
    f4                    ; hlt
""")
"""Each vCPU writes to a port of its own and sets a bit of its own."""


def test_an_error_of_a_device_ends_the_run_once_and_the_machine_goes_on() -> None:
    """Of the access of vCPU 1; the others come to their ends, and so does that one in the next run."""
    with SmpGuest(OUTS, cpus=3) as guest:
        guest.machine.pio.attach(Faulty(), 0x11, 1)
        with pytest.raises(DeviceError, match="on purpose") as caught:
            guest.machine.run(timeout=20)
        assert (caught.value.address, caught.value.value) == (0x11, 2)
        guest.finish()
        assert guest.word() == 7


def test_an_access_that_waits_for_its_caller_keeps_its_vcpu() -> None:
    """Each vCPU reads where nobody is: each exit says which one, is answered, and that one gets the answer."""
    program = code64("""
        8b 06                 ; again: mov eax, [rsi]
        44 01 f8              ; add eax, r15d
        eb 00                 ; jmp .+2
        01 04 af              ; add [rdi + 4 * rbp], eax
        ff c9                 ; dec ecx
        75 f2                 ; jnz again
        f4                    ; hlt
    """)
    count, cpus = 20, 3
    with SmpGuest(program, cpus=cpus) as guest:
        guest.set_all(rsi=0x10000000, rcx=count)
        for vcpu in guest.vcpus:
            registers = vcpu.registers
            registers.rbp = vcpu.index
            vcpu.registers = registers
        seen: Counter[int] = Counter()
        while (exit := guest.machine.run(timeout=20, unclaimed="stop")) != HltExit():
            assert isinstance(exit, MmioExit) and not exit.is_write
            vcpu = guest.machine.exited
            seen[vcpu.index] += 1
            assert vcpu.registers.r15 == vcpu.index
            exit.data = 1000 * seen[vcpu.index]
        total = 1000 * count * (count + 1) // 2
        assert [guest.word(4 * index, 4) for index in range(cpus)] == [total + index * count for index in range(cpus)]


def test_while_an_access_waits_for_its_caller_others_can_be_kicked() -> None:
    """They do not run meanwhile, but their callers get them back."""
    program = code64("""
        45 85 ff  ; test r15d, r15d
        75 05     ; jnz other
        e4 10     ; in al, 0x10
        f4        ; hlt
        66 90     ; nop
        48 ff c1  ; other: inc rcx
        eb fb     ; jmp other
    """)
    with SmpGuest(program, cpus=2) as guest:
        exit = guest.vcpus[0].run()
        thread_exits: list[object] = []
        thread = threading.Thread(target=lambda: thread_exits.append(guest.vcpus[1].run()))
        thread.start()
        time.sleep(0.01)
        guest.vcpus[1].kick()
        thread.join(20)
        assert thread_exits == [KickExit()]
        exit.data = 0x42  # type: ignore[union-attr]
        assert guest.vcpus[0].run() == HltExit()
        assert guest.vcpus[0].registers.rax == 0x42


def test_resetting_several_vcpus_of_which_one_waits_for_its_caller() -> None:
    """The access ends, unseen by anybody; all are as after a reset."""
    seen: list[int] = []

    class Port(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            seen.append(value)

    program = code64("""
        45 85 ff  ; test r15d, r15d
        74 fe     ; jz .
        e4 10     ; in al, 0x10
        e6 11     ; out 0x11, al
        eb fe     ; jmp .
    """)
    with SmpGuest(program, cpus=2) as guest:
        guest.machine.pio.attach(Port(), 0x11, 1)
        guest.machine.run(timeout=20, unclaimed="stop")
        assert guest.machine.exited is guest.vcpus[1]
        guest.machine.reset()
        assert [vcpu.registers.rip for vcpu in guest.vcpus] == [0xFFF0, 0xFFF0]
        while (exit := guest.vcpus[1].run()) == KickExit():  # left over from the pause
            pass
        assert exit == HltExit()
        assert not seen


# The engine.


def test_the_fallback_says_that_it_runs_one_vcpu() -> None:
    """An `EngineError` that names the number asked for."""
    with pytest.raises(EngineError, match="runs 1 vCPU, not 2"):
        Machine(UnicornEngine("fallback"), cpus=2)


def test_machines_of_many_vcpus_leave_no_thread() -> None:
    """Neither the engine's nor the one that ends slices."""
    before = threading.active_count()
    for _ in range(3):
        with SmpGuest(SPIN, cpus=4) as guest:
            guest.machine.run(timeout=0.02)
    assert threading.active_count() == before
