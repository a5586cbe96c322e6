"""CPUID, the model-specific registers, CR8 and the TSC of a guest, beside a local APIC.

By the Intel SDM: CPUID in vol. 2A, MSRs in vol. 4, the local APIC in vol. 3A, chapter 11. In both ways of
the Unicorn engine; what the fallback does where it lacks something is in test_fallback.py.
"""

from __future__ import annotations

import time

import pytest
from rig import CODE, Guest, code64

from iobus.devices import lapic_registers as r
from iobus.devices.lapic import Lapic
from iobus.devices.lapic_timer import TIMER_HZ
from iobus.irq import ApicBus
from iobus.machine import UnclaimedAccess

pytestmark = pytest.mark.usefixtures("way")

HANDLERS = CODE + 0x1000
UD, GP = 6, 13
APIC_MSRS, MSR_FAULTS, TSC, CR8 = "the APIC's MSRs", "faults of MSRs", "a TSC that can be set and told", "CR8"
SMAP, MACHINE_CHECKS = "SMAP", "the machine-check MSRs"
APIC_ON = 1 << 9


class ApicGuest(Guest):
    """A guest with a local APIC, software-enabled. #UD and #GP end it, with `frame` from DATA + 0x800 on."""

    def __init__(self, program: bytes) -> None:
        super().__init__(program + b"\xf4")
        machine, vcpu = self.machine, self.vcpu
        self.lapic = Lapic(0, vcpu, ApicBus(), machine.clock, bsp=True, tsc=vcpu.executor.tsc, x2apic=True)
        vcpu.controller = self.lapic
        vcpu.features.apic_timer_hz = TIMER_HZ
        vcpu.features.x2apic = vcpu.features.tsc_deadline = True
        self.lapic.attach(vcpu.mmio)
        self.lapic.write(r.SVR, 4, r.SVR_ENABLE | 0xFF)
        keep = code64("""
            8f 04 25 08 08 03 00  ; pop qword ptr [0x30808]
            8f 04 25 10 08 03 00  ; pop qword ptr [0x30810]
            f4                    ; hlt
        """)
        for vector in (UD, GP):
            named = b"\xc6\x04\x25\0\x08\x03\0" + bytes((vector,))  # mov byte ptr [0x30800], vector
            self.gate(vector, named + (b"\x6a\0" if vector == UD else b"") + keep, HANDLERS + 0x40 * vector)

    @property
    def fault(self) -> tuple[int, int, int] | None:
        """The exception that ended the guest: its vector, error code (0 for #UD), and RIP."""
        return (self.word(0x800, 1), self.word(0x808), self.word(0x810)) if self.word(0x800, 1) else None


# IA32_APIC_BASE.

MSR_APIC_BASE = code64("""
    b9 1b 00 00 00  ; mov ecx, 0x1b
""")


@pytest.mark.lost(APIC_MSRS)
def test_apic_base_at_reset() -> None:
    """0xFEE00000, enabled, the bootstrap processor; RDMSR clears the upper halves of RAX and RDX."""
    program = MSR_APIC_BASE + code64("""
        48 c7 c0 ff ff ff ff  ; mov rax, -1
        48 c7 c2 ff ff ff ff  ; mov rdx, -1
        0f 32                 ; rdmsr
    """)
    with ApicGuest(program) as guest:
        end = guest.finish()
        assert (end.rax, end.rdx, guest.fault) == (0xFEE00900, 0, None)


@pytest.mark.lost(APIC_MSRS)
def test_the_apic_page_follows_its_base() -> None:
    """Moved by WRMSR, the registers answer at the new address at once, and nobody at the old."""
    program = MSR_APIC_BASE + code64("""
        be 30 00 e0 fe           ; mov esi, 0xfee00030
        44 8b 06                 ; mov r8d, [rsi]
        b8 00 09 00 20           ; mov eax, 0x20000900
        31 d2                    ; xor edx, edx
        0f 30                    ; wrmsr
        44 8b 0e                 ; mov r9d, [rsi]
        44 8b 14 25 30 00 00 20  ; mov r10d, [0x20000030]
    """)
    with ApicGuest(program) as guest:
        end = guest.finish()
        assert (end.r8, end.r9, end.r10) == (r.VERSION_VALUE, 0xFFFFFFFF, r.VERSION_VALUE)
        assert guest.machine.unclaimed == {UnclaimedAccess("mmio", 0xFEE00030, False): 1}


@pytest.mark.lost(APIC_MSRS)
def test_the_apic_can_be_disabled_and_enabled_again() -> None:
    """CPUID.01H:EDX.APIC follows IA32_APIC_BASE's enable bit, and so does the page."""
    program = code64("""
        be 30 00 e0 fe  ; mov esi, 0xfee00030
        b9 1b 00 00 00  ; mov ecx, 0x1b
        b8 00 01 e0 fe  ; mov eax, 0xfee00100
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        44 8b 06        ; mov r8d, [rsi]
        b8 01 00 00 00  ; mov eax, 1
        0f a2           ; cpuid
        41 89 d1        ; mov r9d, edx
        b9 1b 00 00 00  ; mov ecx, 0x1b
        b8 00 09 e0 fe  ; mov eax, 0xfee00900
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        44 8b 16        ; mov r10d, [rsi]
        b8 01 00 00 00  ; mov eax, 1
        0f a2           ; cpuid
        41 89 d3        ; mov r11d, edx
    """)
    with ApicGuest(program) as guest:
        end = guest.finish()
        assert (end.r8, end.r9 & APIC_ON) == (0xFFFFFFFF, 0)
        assert (end.r10, end.r11 & APIC_ON) == (r.VERSION_VALUE, APIC_ON)


@pytest.mark.lost(APIC_MSRS)
def test_x2apic_mode_makes_registers_of_msrs() -> None:
    """With EXTD set the version is MSR 0x803 and the page is gone; before, that MSR does not exist."""
    program = code64("""
        b9 1b 00 00 00  ; mov ecx, 0x1b
        b8 00 0d e0 fe  ; mov eax, 0xfee00d00
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        b9 03 08 00 00  ; mov ecx, 0x803
        0f 32           ; rdmsr
        41 89 c0        ; mov r8d, eax
        44 8b 0e        ; mov r9d, [rsi]
    """)
    with ApicGuest(program) as guest:
        guest.set(rsi=0xFEE00030)
        end = guest.finish()
        assert (end.r8, end.r9, guest.fault) == (r.VERSION_VALUE, 0xFFFFFFFF, None)
    with ApicGuest(b"\xb9\x03\x08\0\0\x0f\x32") as guest:  # mov ecx, 0x803; rdmsr
        guest.finish()
        assert guest.fault == (GP, 0, CODE + 5)


# Other MSRs.


@pytest.mark.lost(MSR_FAULTS)
@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x1B, 0xFEE00900 | 1 << 9),  # IA32_APIC_BASE, a reserved bit
        (0x1B, 1 << 40 | 0x900),  # beyond the physical address width
        (0x277, 0x0007040600070402),  # IA32_PAT: type 2 is reserved
        (0x2FF, 0xC02),  # IA32_MTRR_DEF_TYPE
        (0xFE, 0),  # IA32_MTRRCAP is read-only
        (0x179, 0),  # IA32_MCG_CAP, too
        (0x401, 1),  # IA32_MC0_STATUS can only be cleared
        (0x410, 0),  # there is no bank 4
        (0x12345678, 0),
        (0xC0010114, 0),  # AMD's VM_CR
        (0x4B564D00, 1),  # a paravirtual clock's
    ],
)
def test_a_wrmsr_that_cannot_be_is_a_gp_at_the_wrmsr(index: int, value: int) -> None:
    """#GP with error code 0, at the instruction, and nothing changed."""
    with ApicGuest(b"\x90\x0f\x30") as guest:
        before = guest.lapic.read_msr(0x1B)
        guest.set(rcx=index, rax=value & 0xFFFFFFFF, rdx=value >> 32)
        guest.finish()
        assert guest.fault == (GP, 0, CODE + 1)
        assert guest.lapic.read_msr(0x1B) == before


@pytest.mark.lost(MSR_FAULTS)
@pytest.mark.parametrize("index", [0x12345678, 0x4B564D01, 0xC0011029, 0x3FFFFFFF, 0xFFFFFFFF])
def test_a_rdmsr_of_an_unknown_msr_is_a_gp_at_the_rdmsr(index: int) -> None:
    """#GP with error code 0, the registers as they were."""
    with ApicGuest(b"\x90\x0f\x32") as guest:
        guest.set(rcx=index, rax=0x1111, rdx=0x2222)
        end = guest.finish()
        assert guest.fault == (GP, 0, CODE + 1)
        assert (end.rax, end.rdx) == (0x1111, 0x2222)


def test_rdmsr_is_for_the_supervisor() -> None:
    """#GP at CPL 3, without asking anybody."""
    with ApicGuest(b"\x0f\x32") as guest:
        guest.user(CODE, rcx=0x1B)
        guest.finish()
        assert guest.fault == (GP, 0, CODE)


def test_an_msr_keeps_what_was_written_until_reset() -> None:
    """IA32_PAT, through an instruction with prefixes that mean nothing to it."""
    program = code64("""
        b9 77 02 00 00  ; mov ecx, 0x277
        b8 06 05 04 01  ; mov eax, 0x01040506
        ba 05 04 01 00  ; mov edx, 0x00010405
        48 0f 30        ; rex.W wrmsr
        31 c0           ; xor eax, eax
        31 d2           ; xor edx, edx
        48 0f 32        ; rex.W rdmsr
    """)
    with ApicGuest(program) as guest:
        end = guest.finish()
        assert (end.rax, end.rdx, guest.fault) == (0x01040506, 0x00010405, None)
        guest.machine.reset()
        guest.memory.write(CODE, b"\x0f\x32\xf4")
        guest.start()
        guest.set(rcx=0x277)
        end = guest.finish()
        assert (end.rax, end.rdx) == (0x00070406, 0x00070406)


@pytest.mark.lost(MACHINE_CHECKS)
def test_machine_checks_are_there_and_have_nothing_to_tell() -> None:
    """CPUID has MCE and MCA; of the banks that IA32_MCG_CAP counts, CTL can be written, STATUS cleared."""
    assert cpuid(1)[3] & 0x4080 == 0x4080
    with ApicGuest(b"\x0f\x32") as guest:
        guest.set(rcx=0x179)
        banks = guest.finish().rax & 0xFF
    assert banks > 0
    program = code64("""
        b8 ff ff ff ff  ; mov eax, -1
        89 c2           ; mov edx, eax
        0f 30           ; wrmsr
        31 c0           ; xor eax, eax
        31 d2           ; xor edx, edx
        0f 32           ; rdmsr
        41 89 c0        ; mov r8d, eax
        41 89 d1        ; mov r9d, edx
        ff c1           ; inc ecx
        31 c0           ; xor eax, eax
        31 d2           ; xor edx, edx
        0f 30           ; wrmsr
        0f 32           ; rdmsr
    """)
    for bank in range(banks):
        with ApicGuest(program) as guest:
            guest.set(rcx=0x400 + 4 * bank)
            end = guest.finish()
            assert (end.r8, end.r9, end.rax, end.rdx, guest.fault) == (0xFFFFFFFF, 0xFFFFFFFF, 0, 0, None)


# The TSC.


@pytest.mark.lost(TSC)
def test_writing_the_tsc_moves_rdtsc() -> None:
    """RDTSC, RDTSCP and RDMSR count on from what was written, forward or back."""
    program = code64("""
        b9 10 00 00 00  ; mov ecx, 0x10
        31 c0           ; xor eax, eax
        ba 00 00 00 10  ; mov edx, 0x10000000
        0f 30           ; wrmsr
        0f 31           ; rdtsc
        41 89 d0        ; mov r8d, edx
        ba 05 00 00 00  ; mov edx, 5
        0f 30           ; wrmsr
        0f 31           ; rdtsc
        41 89 d1        ; mov r9d, edx
        0f 01 f9        ; rdtscp
        41 89 d2        ; mov r10d, edx
        b9 10 00 00 00  ; mov ecx, 0x10
        0f 32           ; rdmsr
        41 89 d3        ; mov r11d, edx
    """)
    with ApicGuest(program) as guest:
        end = guest.finish()
        assert all(0 <= high - start < 256 for high, start in ((end.r8, 1 << 28), (end.r9, 5), (end.r10, 5)))
        assert 5 <= end.r11 < 256
        tsc = guest.vcpu.executor.tsc
        assert tsc is not None and 5 <= tsc.read() >> 32 < 256


@pytest.mark.lost(APIC_MSRS)
def test_the_tsc_deadline_timer_interrupts_when_the_tsc_is_there() -> None:
    """The handler runs not before the deadline, and the MSR reads 0 then; also with the TSC set anew."""
    program = code64("""
        b9 10 00 00 00     ; mov ecx, 0x10
        31 c0              ; xor eax, eax
        ba 07 00 00 00     ; mov edx, 7
        0f 30              ; wrmsr
        be 20 03 e0 fe     ; mov esi, 0xfee00320
        c7 06 40 00 04 00  ; mov dword ptr [rsi], 0x40040
        0f 31              ; rdtsc
        05 c0 c6 2d 00     ; add eax, 3000000
        83 d2 00           ; adc edx, 0
        41 89 c0           ; mov r8d, eax
        41 89 d1           ; mov r9d, edx
        b9 e0 06 00 00     ; mov ecx, 0x6e0
        0f 30              ; wrmsr
        fb                 ; sti
        f4                 ; hlt
        fa                 ; cli
        0f 32              ; rdmsr
    """)
    with ApicGuest(program) as guest:
        guest.gate(
            0x40,
            code64("""
                0f 31     ; rdtsc
                41 89 c2  ; mov r10d, eax
                41 89 d3  ; mov r11d, edx
                48 cf     ; iretq
        """),
            HANDLERS,
        )
        end = guest.finish()
        assert (end.r11 << 32 | end.r10) >= (end.r9 << 32 | end.r8)
        assert (end.rax, end.rdx) == (0, 0)


@pytest.mark.lost(TSC)
def test_cpuid_tells_the_tscs_frequency() -> None:
    """Leaf 0x15: ECX * EBX / EAX is what the TSC really counts in a second, within 1000 ppm."""

    def sample() -> tuple[int, int]:
        pairs = []
        for _ in range(20):
            before = time.monotonic_ns()
            value = tsc.read()
            pairs.append((time.monotonic_ns() - before, before, value))
        width, before, value = min(pairs)
        return before + width // 2, value

    with ApicGuest(b"\x0f\xa2") as guest:
        guest.set(rax=0x15, rcx=0)
        end = guest.finish()
        tsc = guest.vcpu.executor.tsc
        assert tsc is not None
        start_ns, start = sample()
        time.sleep(0.1)
        end_ns, stop = sample()
        measured = (stop - start) * 1e9 / (end_ns - start_ns)
        assert end.rcx == TIMER_HZ
        assert end.rcx * end.rbx / end.rax == pytest.approx(measured, rel=1e-3)
        assert end.rbx * end.rcx // 1000 < 1 << 32  # software multiplies in 32 bits


# CR8.


@pytest.mark.lost(CR8)
def test_cr8_is_the_task_priority() -> None:
    """CR8 is TPR[7:4], both ways, with any register as operand; what does not fit is a #GP."""
    program = code64("""
        be 80 00 e0 fe     ; mov esi, 0xfee00080
        bd 05 00 00 00     ; mov ebp, 5
        44 0f 22 c5        ; mov cr8, rbp
        8b 0e              ; mov ecx, [rsi]
        c7 06 7f 00 00 00  ; mov dword ptr [rsi], 0x7f
        45 0f 20 c4        ; mov r12, cr8
        41 bf 09 00 00 00  ; mov r15d, 9
        45 0f 22 c7        ; mov cr8, r15
        44 0f 20 c2        ; mov rdx, cr8
        b8 10 00 00 00     ; mov eax, 0x10
        44 0f 22 c0        ; mov cr8, rax
    """)
    with ApicGuest(program) as guest:
        end = guest.finish()
        assert (end.rcx, end.r12, end.rdx) == (0x50, 7, 9)
        assert guest.fault == (GP, 0, CODE + len(program) - 4)
        assert guest.lapic.read_cr8() == 9


@pytest.mark.lost(CR8)
def test_lowering_cr8_lets_the_interrupt_in_there() -> None:
    """A pending interrupt of class 4 waits while CR8 is 4, and comes right behind the MOV that makes it 3."""
    program = code64("""
        b8 04 00 00 00     ; mov eax, 4
        44 0f 22 c0        ; mov cr8, rax
        be 00 03 e0 fe     ; mov esi, 0xfee00300
        c7 06 45 00 04 00  ; mov dword ptr [rsi], 0x40045
        fb                 ; sti
        90                 ; nop
        90                 ; nop
        b8 03 00 00 00     ; mov eax, 3
        44 0f 22 c0        ; mov cr8, rax
        90                 ; nop
        90                 ; nop
        fa                 ; cli
    """)
    with ApicGuest(program) as guest:
        guest.gate(
            0x45,
            code64("""
                48 8b 1c 24  ; mov rbx, [rsp]
                48 cf        ; iretq
        """),
            HANDLERS,
        )
        assert guest.finish().rbx == CODE + len(program) - 3


# CPUID.


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    with ApicGuest(b"\x0f\xa2") as guest:
        guest.set(rax=leaf | 0xFFFF << 32, rcx=subleaf, rbx=(1 << 64) - 1)
        end = guest.finish()
        return end.rax, end.rbx, end.rcx, end.rdx


def test_cpuid_offers_nothing_that_is_not_there() -> None:
    """No VME, MONITOR, VMX, FMA, XSAVE, AVX, F16C, RDRAND; no AVX2, CLFLUSHOPT, AVX-512; no SVM; leaf 0xD is empty."""
    _, _, ecx, edx = cpuid(1)
    assert not ecx & sum(1 << bit for bit in (3, 5, 12, 26, 27, 28, 29, 30))
    assert edx & APIC_ON and not edx & 1 << 1
    assert not cpuid(7)[1] & sum(1 << bit for bit in (5, 16, 17, 21, 23, 26, 27, 28, 30, 31))
    assert not cpuid(0x80000001)[2] & 1 << 2
    assert cpuid(0xD) == (0, 0, 0, 0)


@pytest.mark.lost(APIC_MSRS)
def test_cpuid_offers_what_lives_behind_msrs() -> None:
    """x2APIC and the TSC-deadline timer, which the machine here has."""
    assert cpuid(1)[2] & 0x1200000 == 0x1200000


def test_cpuid_beyond_the_last_leaf_gives_the_last_basic_one(way: str) -> None:
    """Its registers are 32 bits wide, and the hypervisor's leaves have their own."""
    top = cpuid(0)[0]
    assert top == (0x15 if way == "native" else 0xD)  # without the TSC's frequency there is no leaf 0x15
    assert cpuid(0x1000)[2] == cpuid(top)[2] == cpuid(0x80000009)[2] == (TIMER_HZ if top == 0x15 else 0)
    assert cpuid(0x40000000)[0] == 0x40000000 and cpuid(0x40000001) == (0, 0, 0, 0)


UNDEFINED = {
    "VMRUN": "0f 01 d8",
    "VMMCALL": "0f 01 d9",
    "VMLOAD": "0f 01 da",
    "VMSAVE": "0f 01 db",
    "STGI": "0f 01 dc",
    "CLGI": "0f 01 dd",
    "SKINIT": "0f 01 de",
    "INVLPGA": "0f 01 df",
    "VMCALL": "0f 01 c1",
    "MONITOR": "0f 01 c8",
    "MWAIT": "0f 01 c9",
    "XGETBV": "0f 01 d0",
    "XSAVE": "0f ae 27",
    "RSM": "0f aa",
}


@pytest.mark.parametrize("name", list(UNDEFINED))
def test_an_instruction_that_is_not_offered_is_undefined(name: str) -> None:
    """#UD at the instruction, not an effect on the monitor."""
    with ApicGuest(b"\x90" + bytes.fromhex(UNDEFINED[name])) as guest:
        guest.finish()
        assert guest.fault == (UD, 0, CODE + 1)


OFFERED = {
    "CX8": (1, 3, 8, "0f c7 0f"),
    "CMOV": (1, 3, 15, "0f 44 c1"),
    "CLFSH": (1, 3, 19, "0f ae 3f"),
    "MMX": (1, 3, 23, "0f 77"),
    "FXSR": (1, 3, 24, "0f ae 07"),
    "SSE2": (1, 3, 26, "66 0f 58 c1"),
    "SSE3": (1, 2, 0, "f2 0f d0 c1"),
    "PCLMULQDQ": (1, 2, 1, "66 0f 3a 44 c1 00"),
    "SSSE3": (1, 2, 9, "66 0f 38 00 c1"),
    "CX16": (1, 2, 13, "48 0f c7 0f"),
    "SSE4.1": (1, 2, 19, "66 0f 38 40 c1"),
    "SSE4.2": (1, 2, 20, "f2 0f 38 f1 c1"),
    "MOVBE": (1, 2, 22, "0f 38 f0 07"),
    "POPCNT": (1, 2, 23, "f3 0f b8 c1"),
    "AES": (1, 2, 25, "66 0f 38 dc c1"),
    "FSGSBASE": (7, 1, 0, "f3 0f ae c0"),
    "BMI1": (7, 1, 3, "c4 e2 70 f2 c1"),
    "BMI2": (7, 1, 8, "c4 e2 71 f7 c1"),
    "ADX": (7, 1, 19, "66 0f 38 f6 c1"),
    "CLAC": (7, 1, 20, "0f 01 ca"),
    "LZCNT": (0x80000001, 2, 5, "f3 0f bd c1"),
    "PREFETCHW": (0x80000001, 2, 8, "0f 0d 0f"),
    "RDTSCP": (0x80000001, 3, 27, "0f 01 f9"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.lost(SMAP)) if name == "CLAC" else name for name in OFFERED]
)
def test_an_instruction_that_is_offered_executes(name: str) -> None:
    """CPUID has its bit, and it is no #UD."""
    leaf, register, bit, code = OFFERED[name]
    assert cpuid(leaf)[register] >> bit & 1
    with ApicGuest(bytes.fromhex(code)) as guest:
        guest.set(cr4=0x620 | 1 << 16)  # FSGSBASE
        guest.finish()
        assert guest.fault is None
