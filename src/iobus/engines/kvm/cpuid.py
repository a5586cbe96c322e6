"""What CPUID says on this engine: what the kernel supports, made one vCPU's.

Above `ioctls.py`; `cpu.py` hands the table to the kernel. By the Intel SDM vol. 2A (CPUID), the AMD64 APM
vol. 3 (appendix E) and the kernel's Documentation/virt/kvm/x86/cpuid.rst for the leaves of KVM itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from iobus.engines.kvm import abi, ioctls
from iobus.engines.kvm.ioctls import call, flexible
from iobus.paging import PHYSICAL_BITS
from iobus.vcpu import CpuFeatures

_ENTRIES: Final = 256  # the kernel's own limit

_VMX, _X2APIC, _TSC_DEADLINE, _HYPERVISOR, _PDCM = 1 << 5, 1 << 21, 1 << 24, 1 << 31, 1 << 15  # leaf 1, ECX
_APIC, _HTT = 1 << 9, 1 << 28  # leaf 1, EDX
_CMP_LEGACY, _SVM, _TOPOEXT, _PERF = 1 << 1, 1 << 2, 1 << 22, 1 << 23 | 1 << 24 | 1 << 28  # leaf 0x80000001, ECX

_KVM_LEAVES: Final = 0x40000000
_KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"
_KVM_FEATURES: Final = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24
"""The clock by both of its MSRs, no delays for ports, a stable TSC. The rest needs the LAPIC to be in the kernel, and
a guest sees the same machine wherever that is."""

_NOT_OFFERED: Final = frozenset({0xA, 0x8000000A, 0x8000001D, 0x8000001E, 0x80000022})
"""Performance counters and their interrupts, nested virtualisation, and topology that is the host's own."""


class Leaf(NamedTuple):
    """One entry of the table."""

    function: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


_FIELDS: Final = ("function", "index", "flags", "eax", "ebx", "ecx", "edx")
"""A leaf's fields as the kernel's structure has them."""


def supported(system: int) -> list[Leaf]:
    """Return what the kernel and the host's CPU can give a guest."""
    head, entries, buffer = flexible(abi.Cpuid2, abi.CpuidEntry2, _ENTRIES)
    head.nent = _ENTRIES
    call(system, ioctls.KVM_GET_SUPPORTED_CPUID, buffer)
    return [Leaf(*(getattr(entry, name) for name in _FIELDS)) for entry in entries[: head.nent]]


def install(fd: int, leaves: Iterable[Leaf]) -> None:
    """Make `leaves` what CPUID says on the vCPU."""
    table = list(leaves)
    head, entries, buffer = flexible(abi.Cpuid2, abi.CpuidEntry2, len(table))
    head.nent = len(table)
    for entry, leaf in zip(entries, table, strict=True):
        for name, value in zip(_FIELDS, leaf, strict=True):
            setattr(entry, name, value)
    call(fd, ioctls.KVM_SET_CPUID2, buffer)


def table(leaves: Iterable[Leaf], apic_id: int, cpus: int, features: CpuFeatures) -> list[Leaf]:
    """Return the table of one vCPU of a machine of `cpus`: one package, each core with one thread."""
    given = list(leaves)
    shift = (cpus - 1).bit_length()
    last = next((leaf.eax for leaf in given if leaf.function == 0), 0)
    found: list[Leaf] = []
    for leaf in given:
        function, eax, ebx, ecx, edx = leaf.function, leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        if function in _NOT_OFFERED:
            eax = ebx = ecx = edx = 0
        elif function in (0xB, 0x1F) or _KVM_LEAVES <= function < 0x80000000:
            continue  # made below
        elif function == 1:
            ebx = ebx & 0xFFFF | min(cpus, 0xFF) << 16 | (apic_id & 0xFF) << 24
            ecx = ecx & ~(_VMX | _PDCM | _X2APIC | _TSC_DEADLINE) | _HYPERVISOR
            ecx |= _X2APIC if features.x2apic else 0
            ecx |= _TSC_DEADLINE if features.tsc_deadline else 0
            # The APIC bit is the kernel's, which makes it follow IA32_APIC_BASE.
            edx = edx & ~_HTT | (_HTT if cpus > 1 else 0) | _APIC
        elif function == 4 and eax & 0x1F:
            sharing = (1 << shift) - 1 if eax >> 5 & 7 >= 3 else 0
            eax = eax & 0x3FFF | sharing << 14 | min((1 << shift) - 1, 63) << 26
        elif function == 0x80000001:
            ecx = ecx & ~(_SVM | _TOPOEXT | _PERF | _CMP_LEGACY) | (_CMP_LEGACY if cpus > 1 and ecx & _SVM else 0)
        elif function == 0x80000008:
            eax = eax & ~0xFF00FF | min(eax & 0xFF, PHYSICAL_BITS)
            ecx = ecx & ~0xF0FF | (shift << 12 | cpus - 1 if cpus > 1 else 0)
        found.append(leaf._replace(eax=eax, ebx=ebx, ecx=ecx, edx=edx))
    for function in (0xB, 0x1F):
        if function <= last:
            found += _topology(function, apic_id, cpus, shift)
    found.append(Leaf(_KVM_LEAVES, 0, 0, _KVM_LEAVES + 1, *struct.unpack("<III", _KVM_SIGNATURE)))
    offered = next((leaf.eax for leaf in given if leaf.function == _KVM_LEAVES + 1), 0)
    found.append(Leaf(_KVM_LEAVES + 1, 0, 0, offered & _KVM_FEATURES, 0, 0, 0))
    return found


def _topology(function: int, apic_id: int, cpus: int, shift: int) -> list[Leaf]:
    """Leaves 0xB and 0x1F: threads (type 1), cores (type 2), and the end of the list."""
    levels: list[tuple[int, Any, int]] = [(0, 1, 1 << 8), (shift, cpus, 2 << 8), (0, 0, 0)]
    return [
        Leaf(function, subleaf, ioctls.KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax, ebx, kind | subleaf, apic_id)
        for subleaf, (eax, ebx, kind) in enumerate(levels)
    ]
