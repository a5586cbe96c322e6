"""CPUID, CR8 and MSRs on KVM, with a LAPIC in Python behind them: what a guest sees is what the LAPIC has."""

from __future__ import annotations

import struct

import pytest
from kvm_rig import Guest, needs_hardware, needs_kvm
from rig import CODE, DATA, code64

from iobus.cpu_registers import Registers
from iobus.devices import lapic_registers as r
from iobus.devices.lapic import Lapic
from iobus.engines.kvm.cpuid import Leaf, table
from iobus.irq import ApicBus
from iobus.paging import PHYSICAL_BITS
from iobus.vcpu import CpuFeatures

pytestmark = needs_kvm

GP_LOG = code64("""
    48 8b 44 24 08     ; mov rax, [rsp + 8]
    48 89 07           ; mov [rdi], rax
    48 83 c7 08        ; add rdi, 8
    48 83 44 24 08 02  ; add qword ptr [rsp + 8], 2
    48 83 c4 08        ; add rsp, 8
    48 cf              ; iretq
""")
"""A handler of #GP that notes where it came from and goes on behind an instruction of two bytes."""

HANDLER = CODE + 0x1000


def with_lapic(guest: Guest) -> Lapic:
    """Give the guest a LAPIC, as a PC does."""
    vcpu = guest.vcpu
    traps = vcpu.executor.traps_msrs
    lapic = Lapic(0, vcpu, ApicBus(), guest.machine.clock, bsp=True, tsc=vcpu.executor.tsc, x2apic=traps)
    vcpu.controller = lapic
    vcpu.features.x2apic, vcpu.features.tsc_deadline = traps, vcpu.executor.tsc is not None
    lapic.attach(vcpu.mmio)
    lapic.virtual_wire()
    return lapic


def test_cr8_and_the_lapics_tpr_are_one_register() -> None:
    """What is written to either is read from the other, by MOV CR8 and at the LAPIC's page."""
    program = code64("""
        44 0f 20 c0        ; mov rax, cr8
        48 89 07           ; mov [rdi], rax
        b8 09 00 00 00     ; mov eax, 9
        44 0f 22 c0        ; mov cr8, rax
        bb 80 00 e0 fe     ; mov ebx, 0xfee00080
        8b 0b              ; mov ecx, [rbx]
        48 89 4f 08        ; mov [rdi + 8], rcx
        c7 03 45 00 00 00  ; mov dword ptr [rbx], 0x45
        44 0f 20 c0        ; mov rax, cr8
        48 89 47 10        ; mov [rdi + 16], rax
        b8 02 00 00 00     ; mov eax, 2
        44 0f 22 c0        ; mov cr8, rax
        f4                 ; hlt
    """)
    with Guest(program) as guest:
        lapic = with_lapic(guest)
        lapic.write_cr8(3)
        guest.finish()
        assert [guest.word(at) for at in (0, 8, 16)] == [3, 0x90, 4]
        assert lapic.state.tpr == 0x20


@pytest.mark.parametrize(
    "store",
    [
        "89 83 80 00 00 00     ; mov [rbx + 0x80], eax",
        "48 89 83 80 00 00 00  ; mov [rbx + 0x80], rax",
        "0f 11 83 80 00 00 00  ; movups [rbx + 0x80], xmm0",
    ],
    ids=["4", "8", "16"],
)
def test_a_store_of_any_width_to_the_tpr_is_cr8(store: str) -> None:
    """However wide it is, the CPU goes on with what it left in the LAPIC's TPR."""
    program = code64(f"""
        0f 10 07     ; movups xmm0, [rdi]
        {store}
        44 0f 20 c1  ; mov rcx, cr8
        f4           ; hlt
    """)
    with Guest(program) as guest:
        lapic = with_lapic(guest)
        guest.set(rax=0x45, rbx=0xFEE00000)
        guest.memory.store(DATA, 8, 0x45)
        registers = guest.finish()
        assert (lapic.state.tpr, registers.rcx) == (0x45, 4)


@needs_hardware
def test_lowering_cr8_lets_a_waiting_interrupt_in() -> None:
    """A vector of class 5 waits under CR8 = 7 with interrupts on, and comes when CR8 becomes 4 (SDM 11.8.3.1)."""
    program = code64("""
        b8 07 00 00 00  ; mov eax, 7
        44 0f 22 c0     ; mov cr8, rax
        fb              ; sti
        90              ; nop
        ff 07           ; inc dword ptr [rdi]
        b8 04 00 00 00  ; mov eax, 4
        44 0f 22 c0     ; mov cr8, rax
        90              ; nop
        fa              ; cli
        f4              ; hlt
    """)
    handler = code64("""
        8b 0f  ; mov ecx, [rdi]
        48 cf  ; iretq
    """)
    with Guest(program) as guest:
        lapic = with_lapic(guest)
        guest.gate(0x50, handler, HANDLER)
        with guest.machine.lock:
            lapic._request(0x50, False)
        guest.set(rcx=0x77)
        assert guest.finish().rcx == 1


def test_the_lapic_moves_where_its_base_is_written() -> None:
    """WRMSR of IA32_APIC_BASE: the page is at the new place at once; disabled, CPUID's APIC bit is gone."""
    program = code64("""
        bb 00 00 00 10  ; mov ebx, 0x10000000
        b9 1b 00 00 00  ; mov ecx, 0x1b
        0f 32           ; rdmsr
        89 07           ; mov [rdi], eax
        b8 00 09 00 10  ; mov eax, 0x10000900
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        8b 43 30        ; mov eax, [rbx + 0x30]
        89 47 08        ; mov [rdi + 8], eax
        b8 01 00 00 00  ; mov eax, 1
        0f a2           ; cpuid
        89 57 10        ; mov [rdi + 16], edx
        b9 1b 00 00 00  ; mov ecx, 0x1b
        b8 00 01 00 10  ; mov eax, 0x10000100
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        b8 01 00 00 00  ; mov eax, 1
        0f a2           ; cpuid
        89 57 18        ; mov [rdi + 24], edx
        f4              ; hlt
    """)
    with Guest(program) as guest:
        lapic = with_lapic(guest)
        guest.finish()
        assert guest.word(size=4) == 0xFEE00900
        assert guest.word(8, 4) == r.VERSION_VALUE
        assert [guest.word(at, 4) >> 9 & 1 for at in (16, 24)] == [1, 0]
        assert lapic.state.apic_base == 0x10000100


def test_x2apic_registers_are_msrs() -> None:
    """In x2APIC mode the version is MSR 0x803 and TPR 0x808, which is CR8."""
    program = code64("""
        b9 1b 00 00 00  ; mov ecx, 0x1b
        0f 32           ; rdmsr
        0d 00 04 00 00  ; or eax, 0x400
        0f 30           ; wrmsr
        b9 03 08 00 00  ; mov ecx, 0x803
        0f 32           ; rdmsr
        89 07           ; mov [rdi], eax
        b9 08 08 00 00  ; mov ecx, 0x808
        b8 55 00 00 00  ; mov eax, 0x55
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        44 0f 20 c0     ; mov rax, cr8
        48 89 47 08     ; mov [rdi + 8], rax
        f4              ; hlt
    """)
    with Guest(program) as guest:
        lapic = with_lapic(guest)
        if not guest.vcpu.executor.traps_msrs:
            pytest.skip("this KVM does not hand MSRs to user space (Linux 5.10 and later do)")
        guest.finish()
        assert (guest.word(size=4), guest.word(8)) == (r.VERSION_VALUE, 5)
        assert lapic.x2apic_mode and lapic.state.tpr == 0x55


def test_the_deadline_timer_counts_the_guests_tsc() -> None:
    """WRMSR of IA32_TSC_DEADLINE, 10 million cycles ahead: the interrupt comes, and the TSC is past the deadline."""
    program = code64("""
        bb 20 03 e0 fe        ; mov ebx, 0xfee00320
        c7 03 40 00 04 00     ; mov dword ptr [rbx], 0x40040
        b9 e0 06 00 00        ; mov ecx, 0x6e0
        0f 31                 ; rdtsc
        05 80 96 98 00        ; add eax, 10000000
        83 d2 00              ; adc edx, 0
        89 07                 ; mov [rdi], eax
        89 57 04              ; mov [rdi + 4], edx
        0f 30                 ; wrmsr
        fb                    ; sti
        f4                    ; hlt
        fa                    ; cli
        f4                    ; hlt
    """)
    handler = code64("""
        0f 31     ; rdtsc
        89 47 08  ; mov [rdi + 8], eax
        89 57 0c  ; mov [rdi + 12], edx
        48 cf     ; iretq
    """)
    with Guest(program) as guest:
        with_lapic(guest)
        if not guest.vcpu.executor.traps_msrs:
            pytest.skip("this KVM does not hand MSRs to user space (Linux 5.10 and later do)")
        guest.gate(0x40, handler, HANDLER)
        guest.finish()
        # The kernel's figure of the frequency is in kHz: a deadline may be early by that error.
        assert guest.word(8) >= guest.word() - 100_000


def test_an_msr_that_nobody_has_is_a_general_protection_fault() -> None:
    """RDMSR of an unknown index; WRMSR of a value that IA32_APIC_BASE refuses."""
    program = code64("""
        b9 45 23 01 00  ; mov ecx, 0x12345
        0f 32           ; rdmsr
        b9 1b 00 00 00  ; mov ecx, 0x1b
        b8 01 04 e0 fe  ; mov eax, 0xfee00401
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        f4              ; hlt
    """)
    with Guest(program) as guest:
        with_lapic(guest)
        guest.gate(13, GP_LOG, HANDLER)
        guest.finish()
        assert [guest.word(), guest.word(8), guest.word(16)] == [CODE + 5, CODE + 19, 0]


def cpuid(guest: Guest, *leaves: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Have the guest execute CPUID; return EAX, EBX, ECX, EDX of each."""
    program = code64("""
        be 00 10 03 00  ; mov esi, 0x31000
        8b 06           ; mov eax, [rsi]
        8b 4e 04        ; mov ecx, [rsi + 4]
        83 f8 ff        ; cmp eax, -1
        74 17           ; je .+0x19
        0f a2           ; cpuid
        89 07           ; mov [rdi], eax
        89 5f 04        ; mov [rdi + 4], ebx
        89 4f 08        ; mov [rdi + 8], ecx
        89 57 0c        ; mov [rdi + 12], edx
        48 83 c7 10     ; add rdi, 16
        48 83 c6 08     ; add rsi, 8
        eb df           ; jmp .-0x1f
        f4              ; hlt
    """)
    guest.memory.write(CODE, program)
    guest.memory.write(0x31000, b"".join(struct.pack("<II", *leaf) for leaf in (*leaves, (0xFFFFFFFF, 0))))
    guest.set(rip=CODE, rdi=DATA)
    guest.finish()
    return [struct.unpack("<IIII", guest.memory.read(DATA + 16 * n, 16)) for n in range(len(leaves))]


def test_cpuid_tells_of_the_hypervisor_and_its_clock() -> None:
    """The hypervisor bit, KVM's signature, both clock MSRs, no feature that needs the LAPIC in the kernel."""
    with Guest(b"") as guest:
        with_lapic(guest)
        one, signature, features, sizes = cpuid(guest, (1, 0), (0x40000000, 0), (0x40000001, 0), (0x80000008, 0))
        assert one[2] >> 31
        assert struct.pack("<III", *signature[1:]) == b"KVMKVMKVM\0\0\0"
        assert signature[0] == 0x40000001
        assert features[0] & ~(1 << 24 | 0b1011) == 0
        assert features[0] & 0b1001 == 0b1001
        assert sizes[0] & 0xFF <= PHYSICAL_BITS


def test_cpuid_offers_what_the_lapic_has() -> None:
    """x2APIC and the deadline timer are there with a LAPIC that has them, and not without one."""
    with Guest(b"") as guest:
        with_lapic(guest)
        traps = guest.vcpu.executor.traps_msrs
        (one,) = cpuid(guest, (1, 0))
        assert (one[2] >> 21 & 1, one[2] >> 24 & 1, one[3] >> 9 & 1) == (traps, traps, 1)
    with Guest(b"") as guest:
        (one,) = cpuid(guest, (1, 0))
        assert (one[2] >> 21 & 1, one[2] >> 24 & 1, one[3] >> 9 & 1) == (0, 0, 0)


HOST = [
    Leaf(0, 0, 0, 0x1F, 0, 0, 0),
    Leaf(1, 0, 0, 0xA0F11, 0x12345600, 0xFFFFFFFF, 0xFFFFFFFF),
    Leaf(4, 0, 1, 0xFFFFFF21, 1, 2, 3),
    Leaf(4, 3, 1, 0xFFFFFF63, 1, 2, 3),
    Leaf(0xA, 0, 0, 7, 7, 7, 7),
    Leaf(0xB, 0, 1, 9, 9, 9, 9),
    Leaf(0x40000000, 0, 0, 0x40000001, 1, 2, 3),
    Leaf(0x40000001, 0, 0, 0xFFFFFFFF, 0, 0, 0),
    Leaf(0x80000001, 0, 0, 0, 0, 0xFFFFFFFF, 0),
    Leaf(0x80000008, 0, 0, 0x3030, 0, 0xFFFF, 0),
    Leaf(0x8000001E, 0, 0, 7, 7, 7, 7),
]
"""A host with everything, as the kernel tells of it."""


@pytest.mark.parametrize(("cpus", "shift"), [(1, 0), (2, 1), (3, 2), (8, 3)])
def test_the_topology_is_the_machines_own(cpus: int, shift: int) -> None:
    """One package of single-threaded cores: leaves 1, 4, 0xB, 0x1F and AMD's, of each vCPU (SDM 9.9.3, APM E)."""
    for apic_id in range(cpus):
        found = {(leaf.function, leaf.subleaf): leaf for leaf in table(HOST, apic_id, cpus, CpuFeatures(1, True, True))}
        one = found[1, 0]
        assert (one.ebx >> 24, one.ebx >> 16 & 0xFF, one.ebx & 0xFFFF) == (apic_id, cpus, 0x5600)
        assert one.edx >> 28 & 1 == (cpus > 1)
        assert found[4, 0].eax >> 14 & 0xFFF == 0 and found[4, 0].eax >> 26 == (1 << shift) - 1
        assert found[4, 3].eax >> 14 & 0xFFF == (1 << shift) - 1
        for function in (0xB, 0x1F):
            threads, cores, end = (found[function, level] for level in range(3))
            assert threads[3:] == (0, 1, 0x100, apic_id)
            assert cores[3:] == (shift, cpus, 0x201, apic_id)
            assert end.ecx >> 8 == 0
        assert found[0x80000008, 0].ecx & 0xFF == cpus - 1
        assert found[0x80000008, 0].ecx >> 12 & 0xF == shift
        assert found[0x8000001E, 0][3:] == (0, 0, 0, 0)
        assert found[0xA, 0][3:] == (0, 0, 0, 0)


def test_nothing_is_offered_that_is_not_there() -> None:
    """Nested virtualisation, performance counters, and KVM's own features for LAPICs in the kernel."""
    found = {leaf.function: leaf for leaf in table(HOST, 0, 1, CpuFeatures())}
    assert found[1].ecx & (1 << 5 | 1 << 15 | 1 << 21 | 1 << 24) == 0
    assert found[0x80000001].ecx & (1 << 2 | 1 << 22 | 1 << 23) == 0
    assert found[0x40000001].eax == 1 << 24 | 0b1011


SET_UP = code64("""
    b9 77 02 00 00        ; mov ecx, 0x277
    0f 32                 ; rdmsr
    89 07                 ; mov [rdi], eax
    89 57 04              ; mov [rdi + 4], edx
    0f ae 5f 08           ; stmxcsr [rdi + 8]
    b8 06 06 06 06        ; mov eax, 0x06060606
    89 c2                 ; mov edx, eax
    0f 30                 ; wrmsr
    0f ae 57 10           ; ldmxcsr [rdi + 16]
    f4                    ; hlt
""")


@needs_hardware
def test_a_reset_returns_msrs_and_the_fpu_to_power_on() -> None:
    """PAT and MXCSR, which a guest changes, are at their reset values in the next life (SDM table 10-1)."""
    with Guest(SET_UP) as guest:
        lives = []
        for _ in range(2):
            guest.memory.store(DATA + 16, 4, 0x1F00)
            guest.finish()
            lives.append((guest.word(), guest.word(8, 4)))
            guest.machine.reset()
            guest.start()
        assert lives == [(0x0007040600070406, 0x1F80)] * 2


def test_a_reset_forgets_what_was_under_way() -> None:
    """The CPU halts in the service of an NMI, which holds up the next: after a reset the next one comes. CR8 is 0."""
    program = code64("""
        b8 05 00 00 00  ; mov eax, 5
        44 0f 22 c0     ; mov cr8, rax
        f4              ; hlt
        44 0f 20 c1     ; mov rcx, cr8
        f4              ; hlt
    """)
    handler = code64("""
        ff 07  ; inc dword ptr [rdi]
        f4     ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(2, handler, HANDLER)
        guest.finish()
        guest.vcpu.nmi()
        guest.finish()
        assert guest.word(size=4) == 1
        guest.machine.reset()
        assert guest.vcpu.registers.rip == 0xFFF0
        guest.start()
        guest.vcpu.nmi()
        guest.finish()
        assert guest.word(size=4) == 2
        guest.machine.reset()
        guest.start()
        guest.set(rip=CODE + 10)
        assert guest.finish().rcx == 0


@needs_hardware
def test_registers_at_reset() -> None:
    """All but the CPU's own signature in RDX, and CR0's cache bits, which AMD's KVM keeps clear (SDM table 10-1)."""
    with Guest(b"\xf4") as guest:
        guest.finish()
        guest.machine.reset()
        found, wanted = guest.vcpu.registers, Registers()
        assert found.rdx
        found.rdx, found.cr0 = wanted.rdx, found.cr0 | 3 << 29
        found.tr.access = found.tr.access & ~2 | wanted.tr.access & 2  # busy or not
        assert found == wanted
