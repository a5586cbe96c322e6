"""Model-specific registers of the CPU itself: those that are neither the library's nor the LAPIC's.

By the Intel SDM vol. 4. An MSR that is in no table faults with #GP, as on real hardware.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

IA32_TSC: Final = 0x10
IA32_APIC_BASE: Final = 0x1B
IA32_TSC_ADJUST: Final = 0x3B
IA32_TSC_DEADLINE: Final = 0x6E0

_MTRR_CAP = 0xFE
_MTRR_VARIABLE = range(0x200, 0x210)
_MTRR_FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_MTRR_DEFAULT = 0x2FF
_PAT = 0x277

# IA32_ARCH_CAPABILITIES: this CPU does not speculate, so software need not defend itself against it.
# RDCL_NO IBRS_ALL SKIP_L1DFL SSB_NO MDS_NO PSCHANGE_MC_NO TAA_NO SBDR_SSDP_NO FBSDP_NO PSDP_NO BHI_NO
# PBRSB_NO GDS_NO RFDS_NO ITS_NO
_ARCH_CAPABILITIES = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62))

# Machine checks (SDM vol. 3B, "Machine-Check Architecture"): every CPU with an APIC has them, and some software reads
# these without looking at CPUID. Nothing ever fails here, so that no bank has anything to tell.
_BANKS: Final = 4
_MCG_CAP, _MCG_STATUS = 0x179, 0x17A
_BANK_CTL = range(0x400, 0x400 + 4 * _BANKS, 4)
_MCG_STATUS_BITS = 0x7  # RIPV EIPV MCIP
_BANK_RECORD = frozenset(ctl + which for ctl in _BANK_CTL for which in (1, 2, 3))
"""IA32_MCi_STATUS, IA32_MCi_ADDR and IA32_MCi_MISC: software may clear them."""

_CONSTANT: Final = {
    0x17: 0,  # IA32_PLATFORM_ID
    _MCG_CAP: _BANKS,
    0x10A: _ARCH_CAPABILITIES,
    _MTRR_CAP: 0x508,  # 8 variable ranges, fixed ranges, write-combining
    0xCE: 0,  # MSR_PLATFORM_INFO
}
POWER_ON: Final = {
    0x3A: 1,  # IA32_FEATURE_CONTROL, locked
    0x48: 0,  # IA32_SPEC_CTRL
    0x49: 0,  # IA32_PRED_CMD
    0x8B: 0,  # IA32_BIOS_SIGN_ID: no microcode update loaded
    0x1A0: 1,  # IA32_MISC_ENABLE: fast strings
    0x1D9: 0,  # IA32_DEBUGCTL
    0x140: 0,  # MISC_FEATURE_ENABLES
    _PAT: 0x0007040600070406,
    _MTRR_DEFAULT: 0xC06,  # enabled, write-back: as firmware leaves it
    _MCG_STATUS: 0,
    **dict.fromkeys((*_BANK_CTL, *_BANK_RECORD), 0),
    **dict.fromkeys(_MTRR_VARIABLE, 0),
    **dict.fromkeys(_MTRR_FIXED, 0x0606060606060606),
}
"""What the MSRs that software can write hold after power-on."""
_MEMORY_TYPES = frozenset((0, 1, 4, 5, 6))

# Kept by the library, and read without a trap.
_EFER, _FS_BASE, _GS_BASE = 0xC0000080, 0xC0000100, 0xC0000101
CLEARED: Final = (
    0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084,  # STAR, LSTAR, CSTAR, FMASK
    0xC0000102, 0xC0000103,  # KERNEL_GS_BASE, TSC_AUX
    0x174, 0x175, 0x176,  # SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP
)  # fmt: skip
"""Those that are not among a CPU's `Registers`: 0 after power-on."""
UNTRAPPED: Final = (_EFER, _FS_BASE, _GS_BASE, *CLEARED)
ADDRESSES: Final = frozenset((_FS_BASE, _GS_BASE, 0xC0000082, 0xC0000083, 0xC0000102, 0x175, 0x176))
"""Of these, those that hold linear addresses: a write is trapped, for it faults where that is not canonical."""


class Msrs:
    """The CPU's own MSRs. `read` returns None and `write` False where the instruction faults."""

    def __init__(self, read_tsc: Callable[[], int], advance_tsc: Callable[[int], None]) -> None:
        self._read_tsc, self._advance_tsc = read_tsc, advance_tsc
        self.reset()

    def reset(self) -> None:
        """Return to the power-on values. The TSC is the caller's to reset."""
        self._values = {**POWER_ON, IA32_TSC_ADJUST: 0}

    def read(self, index: int) -> int | None:
        if index == IA32_TSC:
            return self._read_tsc()
        value = self._values.get(index)
        return _CONSTANT.get(index) if value is None else value

    def write(self, index: int, value: int) -> bool:
        values = self._values
        if index in (IA32_TSC, IA32_TSC_ADJUST):  # what is added to one is added to both (SDM vol. 3B, 18.17.3)
            ticks = value - (self._read_tsc() if index == IA32_TSC else values[IA32_TSC_ADJUST])
            values[IA32_TSC_ADJUST] = values[IA32_TSC_ADJUST] + ticks & _MASK64
            self._advance_tsc(ticks)
            return True
        if index not in values:
            return False
        if index == _PAT and any(byte not in _MEMORY_TYPES | {7} for byte in value.to_bytes(8, "little")):
            return False
        if index == _MTRR_DEFAULT and (value & ~0xCFF or value & 0xFF not in _MEMORY_TYPES):
            return False
        if index in _MTRR_FIXED and any(byte not in _MEMORY_TYPES for byte in value.to_bytes(8, "little")):
            return False
        if index in _BANK_RECORD and value:
            return False
        if index == _MCG_STATUS and value > _MCG_STATUS_BITS:
            return False
        values[index] = value
        return True


_MASK64: Final = (1 << 64) - 1
