"""What the fallback of the Unicorn engine says it has lost (fallback.LOST): each loss, and where it ends.

What works as it does with intercepts is in the other tests here, which run in both ways.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import rig
from rig import CODE, TSS, Guest, ProtectedGuest, Vectors, code32, code64

from iobus.bus import Device
from iobus.devices import lapic_registers as r
from iobus.devices.lapic import Lapic
from iobus.devices.lapic_timer import TIMER_HZ
from iobus.engines.unicorn.fallback import LOST, SLICE
from iobus.exits import HltExit, KickExit, PioExit
from iobus.irq import ApicBus

HANDLERS = CODE + 0x1000


@pytest.fixture(autouse=True)
def fallback() -> Iterator[None]:
    before, rig.way = rig.way, "fallback"
    yield
    rig.way = before


class ApicGuest(Guest):
    """A guest with a local APIC that could do all of it."""

    def __init__(self, program: bytes) -> None:
        super().__init__(program + b"\xf4")
        machine, vcpu = self.machine, self.vcpu
        self.lapic = Lapic(0, vcpu, ApicBus(), machine.clock, bsp=True, tsc=vcpu.executor.tsc, x2apic=True)
        vcpu.controller = self.lapic
        vcpu.features.apic_timer_hz = TIMER_HZ
        vcpu.features.x2apic = vcpu.features.tsc_deadline = True
        self.lapic.attach(vcpu.mmio)
        self.lapic.write(r.SVR, 4, r.SVR_ENABLE | 0xFF)


# MSRs, CR8, TSC.


def test_the_apics_msrs_do_nothing() -> None:
    """IA32_APIC_BASE reads 0, and what is written to it moves and switches nothing off; so for x2APIC and deadline."""
    program = code64("""
        b9 1b 00 00 00  ; mov ecx, 0x1b
        b8 00 09 00 20  ; mov eax, 0x20000900
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        0f 32           ; rdmsr
        41 89 c0        ; mov r8d, eax
        b9 03 08 00 00  ; mov ecx, 0x803
        0f 32           ; rdmsr
        41 89 c1        ; mov r9d, eax
        b9 e0 06 00 00  ; mov ecx, 0x6e0
        0f 30           ; wrmsr
        be 30 00 e0 fe  ; mov esi, 0xfee00030
        44 8b 16        ; mov r10d, [rsi]
    """)
    with ApicGuest(program) as guest:
        end = guest.finish()
        assert (end.r8, end.r9, end.r10) == (0, 0, r.VERSION_VALUE)
        assert guest.lapic.read_msr(0x1B) == 0xFEE00900


def test_cpuid_offers_nothing_of_what_is_lost() -> None:
    """There is the LAPIC; and no x2APIC, TSC deadline, TSC frequency, machine checks, ARCH_CAPABILITIES, SMAP."""

    def cpuid(leaf: int) -> tuple[int, int, int, int]:
        with ApicGuest(b"\x0f\xa2") as guest:
            guest.set(rax=leaf, rcx=0)
            end = guest.finish()
            return end.rax, end.rbx, end.rcx, end.rdx

    _, _, ecx, edx = cpuid(1)
    assert edx >> 9 & 1
    assert not ecx & (1 << 21 | 1 << 24)
    assert not edx & (1 << 7 | 1 << 14)
    assert cpuid(0)[0] < 0x15
    assert not cpuid(7)[3]
    assert not cpuid(7)[1] >> 20 & 1


def test_user_code_may_use_every_port() -> None:
    """Neither IOPL, 0, nor an I/O permission bit map that ends before the port keeps it from that."""
    with Guest(b"\xe6\x80\xeb\xfe") as guest:  # out 0x80, al; jmp $
        guest.memory.store(TSS + 0x66, 2, 0x68)
        guest.user(CODE, rax=0x55)
        assert guest.vcpu.run() == PioExit(0x80, 1, True, 0x55)


def test_msrs_do_not_fault() -> None:
    """One that does not exist reads 0, and one that would not take a value does."""
    program = code64("""
        b9 78 56 34 12  ; mov ecx, 0x12345678
        0f 30           ; wrmsr
        0f 32           ; rdmsr
        41 89 c0        ; mov r8d, eax
        b9 77 02 00 00  ; mov ecx, 0x277
        b8 02 02 02 02  ; mov eax, 0x02020202 (reserved memory types)
        0f 30           ; wrmsr
    """)
    with Guest(program + b"\xf4") as guest:
        guest.set(rax=1)
        assert guest.finish().r8 == 0


def test_cr8_does_nothing() -> None:
    """It reads 0, and the task priority stays what the APIC's page says."""
    program = code64("""
        b8 05 00 00 00  ; mov eax, 5
        44 0f 22 c0     ; mov cr8, rax
        44 0f 20 c3     ; mov rbx, cr8
    """)
    with ApicGuest(program) as guest:
        guest.lapic.write(r.TPR, 4, 0x30)
        assert guest.finish().rbx == 0
        assert guest.lapic.read(r.TPR, 4) == 0x30


def test_the_tsc_cannot_be_set_or_told() -> None:
    """It counts; WRMSR leaves it alone; devices are not told of it."""
    program = code64("""
        0f 31           ; rdtsc
        48 c1 e2 20     ; shl rdx, 32
        48 09 d0        ; or rax, rdx
        49 89 c0        ; mov r8, rax
        b9 10 00 00 00  ; mov ecx, 0x10
        31 c0           ; xor eax, eax
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        0f 31           ; rdtsc
        48 c1 e2 20     ; shl rdx, 32
        48 09 d0        ; or rax, rdx
    """)
    with Guest(program + b"\xf4") as guest:
        end = guest.finish()
        assert end.rax > end.r8 > 0
        assert guest.vcpu.executor.tsc is None


# How late what comes from another thread may be.


class Elsewhere(Device):
    """Does something on another thread, and waits for that, at each write."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function

    def write(self, offset: int, size: int, value: int) -> None:
        thread = threading.Thread(target=self.function)
        thread.start()
        thread.join()


COUNT = code64("""
    e6 10     ; out 0x10, al
    48 ff c1  ; inc rcx
    eb fb     ; jmp .-3
""")
"""Two instructions a round."""


def test_an_interrupt_comes_within_a_slice() -> None:
    """Requested by another thread in the middle of one: up to `SLICE` instructions late, as the warning says."""
    with Guest(COUNT) as guest:
        guest.gate(0x40, b"\xf4", HANDLERS)
        guest.set(rflags=0x202)
        controller = Vectors(guest.machine)

        def request() -> None:  # the machine's lock is the device's, whose thread waits for this one
            controller.waiting.append(0x40)
            guest.vcpu.interrupt()

        guest.machine.pio.attach(Elsewhere(request), 0x10, 1)
        assert 2 * guest.finish().rcx <= SLICE
        assert str(SLICE) in LOST


@pytest.mark.parametrize("what", ["kick", "NMI"])
def test_a_kick_and_an_nmi_come_within_a_slice(what: str) -> None:
    """As interrupts do."""
    with Guest(COUNT) as guest:
        guest.gate(2, b"\xf4", HANDLERS)
        guest.machine.pio.attach(Elsewhere(guest.vcpu.kick if what == "kick" else guest.vcpu.nmi), 0x10, 1)
        assert guest.vcpu.run() == (KickExit() if what == "kick" else HltExit())
        assert 2 * guest.vcpu.registers.rcx <= SLICE


def test_code_that_another_thread_writes_is_seen_within_a_slice() -> None:
    """A HLT put into a loop of three instructions that has run before."""
    program = code64("""
        48 ff c1  ; inc rcx
        83 f9 64  ; cmp ecx, 100
        75 f8     ; jne .-6
        e6 10     ; out 0x10, al
        eb f4     ; jmp .-10
    """)
    with Guest(program) as guest:
        guest.machine.pio.attach(Elsewhere(lambda: guest.memory.store(CODE, 1, 0xF4)), 0x10, 1)
        end = guest.finish()
        assert end.rip == CODE + 1
        assert 3 * (end.rcx - 100) <= SLICE


# Task gates.


def test_a_task_gate_faults() -> None:
    """#GP with the gate's index at the INT, where the CPU would switch tasks."""
    program = code32("""
        90     ; nop
        cd 40  ; int 0x40
    """)
    handler = code32("""
        8f 07     ; pop dword ptr [edi]
        8f 47 04  ; pop dword ptr [edi + 4]
        f4        ; hlt
    """)
    with ProtectedGuest(program) as guest:
        guest.gate32(0x40, b"", 0, kind=5, selector=0x28)
        guest.gate(13, handler, HANDLERS)
        guest.finish()
        assert (guest.word(0, 4), guest.word(4, 4)) == (0x40 * 8 + 2, CODE + 1)


# Its own machinery.


def test_hlt_is_known_whatever_is_in_front_of_it() -> None:
    """A slice ends at a HLT as it does at its last instruction; the two are told apart at every place in a page."""
    with Guest(b"") as guest:
        for at in range(CODE + 0xFE0, CODE + 0x1004):
            guest.memory.write(at - 32, b"\x90" * 29 + b"\xf3\x48\x90\xf4\xeb\xfe")
            guest.set(rip=at - 32)
            assert guest.finish().rip == at + 1


def test_many_halts_in_many_places() -> None:
    """More than the hooks it keeps on them: each is a HLT still, the first time and later."""
    with Guest(b"\xf4\x90" * 300) as guest:
        for _ in range(2):
            for number in range(300):
                guest.set(rip=CODE + 2 * number)
                assert guest.finish().rip == CODE + 2 * number + 1


def test_a_byte_that_looks_like_a_halt_is_none() -> None:
    """0xF4 as the last byte of a block's jump, as an operand, and where no instruction starts: the guest runs on."""
    program = code64("""
        bb e8 03 00 00  ; mov ebx, 1000
        ff cb           ; dec ebx
        74 0a           ; jz .+12
        eb 01           ; jmp .+3
        f4              ; hlt
        04 f4           ; add al, 0xf4
        90              ; nop
        75 f4           ; jnz .-10
        eb f2           ; jmp .-12
        f4              ; hlt
    """)
    with Guest(program) as guest:
        Vectors(guest.machine, 0x40)  # waits, with interrupts off: each of the first instructions is a slice
        guest.set(rax=0x0C)
        assert guest.finish().rip == CODE + len(program)
