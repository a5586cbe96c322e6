"""What CPUID says on this engine: a table of our own, of what the library can translate.

The library's own answers depend on its CPU model and offer things it lacks (AVX) or that are not
emulated here. By the Intel SDM vol. 2A, CPUID. The vendor is Intel's because only there software
takes the TSC's and the APIC timer's frequency from leaf 0x15 instead of measuring it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Final

from iobus.paging import PHYSICAL_BITS
from iobus.vcpu import CpuFeatures

CPU_SIGNATURE: Final = 0x000306C3
"""Family 6, model 0x3C, stepping 3: in CPUID leaf 1, and in EDX at reset."""

Leaf = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

_VENDOR = b"GenuineIntel"
_BRAND = b"iobus virtual CPU".ljust(48, b"\0")
_HYPERVISOR = b"iobusiobus\0\0"


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


_1_EDX: Final = _bits(0, 2, 3, 4, 5, 6, 8, 11, 12, 13, 15, 16, 17, 19, 23, 24, 25, 26, 27)
"""FPU DE PSE TSC MSR PAE CX8 SEP MTRR PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 SS."""
_APIC: Final = 1 << 9
_1_ECX: Final = _bits(0, 1, 9, 13, 19, 20, 22, 23, 25, 31)
"""SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES HYPERVISOR."""
_MACHINE_CHECK: Final = _bits(7, 14)
"""MCE MCA."""
_X2APIC: Final = 1 << 21
_TSC_DEADLINE: Final = 1 << 24
_7_EBX: Final = _bits(0, 3, 7, 8, 9, 19)
"""FSGSBASE BMI1 SMEP BMI2 ERMS ADX."""
_SMAP: Final = 1 << 20
"""Where stubs.s mends what the library makes of it."""
_TSC_ADJUST: Final = 1 << 1
_7_EDX: Final = _bits(26, 27, 29)
"""IBRS STIBP ARCH_CAPABILITIES: see IA32_ARCH_CAPABILITIES in msrs.py."""
_EXT_ECX: Final = _bits(0, 5, 8)
"""LAHF_LM ABM(LZCNT) PREFETCHW."""
_EXT_EDX: Final = _bits(11, 20, 26, 27, 29)
"""SYSCALL NX PDPE1GB RDTSCP LM."""

CR4_OFFERED: Final = _bits(2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 20, 21)
"""The bits of CR4 that go with these: TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT FSGSBASE SMEP SMAP."""


class Cpuid:
    """The table of one vCPU. What lives behind an MSR is offered only where MSRs are trapped."""

    def __init__(
        self, apic_id: int, cpus: int, features: CpuFeatures, *, traps_msrs: bool, tsc_hz: Callable[[], int] | None
    ) -> None:
        self._apic_id = apic_id
        self._cpus = cpus
        self._id_bits = (cpus - 1).bit_length()  # of an APIC ID
        self._features = features
        self._traps_msrs = traps_msrs
        self._tsc_hz = tsc_hz if features.apic_timer_hz else None
        self._timer_hz = features.apic_timer_hz

    def __call__(self, leaf: int, subleaf: int, *, apic_on: bool) -> Leaf:
        """Answer CPUID with EAX=`leaf` and ECX=`subleaf`; `apic_on` is IA32_APIC_BASE's enable bit."""
        top = 0x15 if self._tsc_hz else 0xD
        if 0x40000000 <= leaf < 0x40000100:
            if leaf == 0x40000000:
                return (0x40000000, *struct.unpack("<III", _HYPERVISOR))
            return 0, 0, 0, 0
        if leaf > top and not 0x80000000 <= leaf <= 0x80000008:
            leaf = top  # SDM: above the highest leaf, the data of the highest basic one
        match leaf:
            case 0:
                ebx, edx, ecx = struct.unpack("<III", _VENDOR)
                return top, ebx, ecx, edx
            case 1:
                ecx = _1_ECX
                if self._traps_msrs:
                    ecx |= _X2APIC if self._features.x2apic else 0
                    ecx |= _TSC_DEADLINE if self._features.tsc_deadline else 0
                edx = _1_EDX | (_APIC if apic_on else 0) | (_MACHINE_CHECK if self._traps_msrs else 0)
                ebx = self._apic_id << 24 | max(self._cpus, 1) << 16 | 8 << 8
                if self._cpus > 1:
                    edx |= 1 << 28
                return CPU_SIGNATURE, ebx, ecx, edx
            case 2:
                return 0x00000001, 0, 0, 0
            case 4:
                return self._cache(subleaf)
            case 7 if subleaf == 0:
                return (0, _7_EBX | _TSC_ADJUST | _SMAP, 0, _7_EDX) if self._traps_msrs else (0, _7_EBX, 0, 0)
            case 0xB:
                return self._topology(subleaf)
            case 0x15 if self._tsc_hz:
                return self._tsc_ratio(self._tsc_hz())
            case 0x80000000:
                return 0x80000008, 0, 0, 0
            case 0x80000001:
                return 0, 0, _EXT_ECX, _EXT_EDX
            case 0x80000002 | 0x80000003 | 0x80000004:
                words = struct.unpack_from("<IIII", _BRAND, (leaf - 0x80000002) * 16)
                return words[0], words[1], words[2], words[3]
            case 0x80000006:
                return 0, 0, 0x01006040, 0
            case 0x80000007:
                return 0, 0, 0, 1 << 8  # invariant TSC
            case 0x80000008:
                return PHYSICAL_BITS | 48 << 8, 0, 0, 0
        return 0, 0, 0, 0

    def _tsc_ratio(self, tsc_hz: int) -> Leaf:
        """Leaf 0x15: TSC = ECX * EBX / EAX, where ECX is the crystal, the APIC timer's clock, in Hz.

        Software multiplies EBX by the crystal's kHz in 32 bits, so EBX is kept below what that holds.
        """
        largest = 0xFFFFFFFF // (self._timer_hz // 1000)
        ratio = Fraction(tsc_hz, self._timer_hz)
        best = ratio.limit_denominator(max(1, int(largest / ratio) - 1))
        return best.denominator, best.numerator, self._timer_hz, 0

    def _cache(self, subleaf: int) -> Leaf:
        """Leaf 4: each core's 32 KiB L1 data and instruction caches, 256 KiB L2; 64-byte lines, 8 ways."""
        sizes = ((1, 1, 32), (2, 1, 32), (3, 2, 256))
        if subleaf >= len(sizes):
            return 0, 0, 0, 0
        kind, level, kib = sizes[subleaf]
        cores = (1 << self._id_bits) - 1
        return kind | level << 5 | 1 << 8 | cores << 26, 63 | 7 << 22, kib * 1024 // 64 // 8 - 1, 0

    def _topology(self, subleaf: int) -> Leaf:
        """Leaf 0xB: one thread a core, all in one package."""
        levels = {0: (0, 1, 1 << 8), 1: (self._id_bits, self._cpus, 2 << 8)}
        eax, ebx, kind = levels.get(subleaf, (0, 0, 0))
        return eax, ebx, subleaf & 0xFF | kind, self._apic_id
