"""The local APIC's register map as data: offsets, bits, what may be written. No behaviour; `lapic.py` has that.

Intel SDM vol. 3A, tables 11-1 (memory-mapped) and 11-6 (x2APIC MSRs). The MSR of a register is
`X2APIC_MSRS + (offset >> 4)`. Names are the SDM's, shortened as its text shortens them.
"""

from typing import Final

ID: Final = 0x020
VERSION: Final = 0x030
TPR: Final = 0x080
APR: Final = 0x090
PPR: Final = 0x0A0
EOI: Final = 0x0B0
RRD: Final = 0x0C0
LDR: Final = 0x0D0
DFR: Final = 0x0E0
SVR: Final = 0x0F0
ISR: Final = 0x100
"""The first of eight; so are TMR and IRR."""
TMR: Final = 0x180
IRR: Final = 0x200
ESR: Final = 0x280
ICR_LOW: Final = 0x300
"""The whole 64-bit ICR in x2APIC mode."""
ICR_HIGH: Final = 0x310
LVT_TIMER: Final = 0x320
LVT_THERMAL: Final = 0x330
LVT_PERFORMANCE: Final = 0x340
LVT_LINT0: Final = 0x350
LVT_LINT1: Final = 0x360
LVT_ERROR: Final = 0x370
INITIAL_COUNT: Final = 0x380
CURRENT_COUNT: Final = 0x390
DIVIDE_CONFIGURATION: Final = 0x3E0
SELF_IPI: Final = 0x3F0
"""x2APIC mode only."""

# IA32_APIC_BASE (section 11.4.4) and the other MSRs.
IA32_APIC_BASE: Final = 0x1B
BASE_BSP: Final = 1 << 8
BASE_EXTD: Final = 1 << 10
BASE_EN: Final = 1 << 11
BASE_MODE: Final = BASE_EN | BASE_EXTD
"""Both bits: x2APIC; EN alone: xAPIC; none: disabled."""
DEFAULT_BASE: Final = 0xFEE00000
IA32_TSC_DEADLINE: Final = 0x6E0
X2APIC_MSRS: Final = 0x800
X2APIC_MSRS_END: Final = 0x900
"""MSRs 0x800-0x8FF are the x2APIC's; those without a register fault."""

VERSION_VALUE: Final = 1 << 24 | 5 << 16 | 0x14
"""An integrated APIC with LVT entries 0-5 (no CMCI) that can suppress EOI broadcasts."""

SVR_ENABLE: Final = 1 << 8
SVR_FOCUS_DISABLED: Final = 1 << 9
SVR_SUPPRESS_EOI: Final = 1 << 12
SVR_WRITABLE: Final = SVR_SUPPRESS_EOI | 0x3FF

DFR_FLAT: Final = 0xFFFFFFFF

# LVT entries (section 11.5.1).
LVT_MODE: Final = 7 << 8
LVT_STATUS: Final = 1 << 12
LVT_ACTIVE_LOW: Final = 1 << 13
LVT_REMOTE_IRR: Final = 1 << 14
LVT_LEVEL: Final = 1 << 15
LVT_MASKED: Final = 1 << 16
LVT_WRITABLE: Final = {
    LVT_TIMER: LVT_MASKED | 3 << 17 | 0xFF,
    LVT_THERMAL: LVT_MASKED | LVT_MODE | 0xFF,
    LVT_PERFORMANCE: LVT_MASKED | LVT_MODE | 0xFF,
    LVT_LINT0: LVT_MASKED | LVT_LEVEL | LVT_ACTIVE_LOW | LVT_MODE | 0xFF,
    LVT_LINT1: LVT_MASKED | LVT_LEVEL | LVT_ACTIVE_LOW | LVT_MODE | 0xFF,
    LVT_ERROR: LVT_MASKED | 0xFF,
}
LVT_TIMER_TSC_DEADLINE: Final = 2 << 17
"""The timer mode bit that exists only with the TSC deadline."""

# ESR bits (section 11.5.3); the others are those of older processors.
ERROR_SEND_ILLEGAL_VECTOR: Final = 1 << 5
ERROR_RECEIVE_ILLEGAL_VECTOR: Final = 1 << 6
ERROR_ILLEGAL_REGISTER: Final = 1 << 7

# ICR (section 11.6.1). The delivery status, bit 12, reads idle: a message arrives as it is sent.
ICR_LOGICAL: Final = 1 << 11
ICR_ASSERT: Final = 1 << 14
ICR_LEVEL: Final = 1 << 15
ICR_SHORTHAND: Final = 3 << 18
ICR_SELF: Final = 1 << 18
ICR_ALL: Final = 2 << 18
ICR_OTHERS: Final = 3 << 18
ICR_LOW_WRITABLE: Final = ICR_SHORTHAND | ICR_LEVEL | ICR_ASSERT | 0xFFF
ICR_HIGH_WRITABLE: Final = 0xFF000000

BROADCAST: Final = 0xFFFFFFFF
XAPIC_BROADCAST: Final = 0xFF

DIVIDE_WRITABLE: Final = 0b1011

X2APIC_READABLE: Final = frozenset(
    {ID, VERSION, TPR, PPR, LDR, SVR, *range(ISR, ESR + 0x10, 0x10), ICR_LOW, *LVT_WRITABLE}
    | {INITIAL_COUNT, CURRENT_COUNT, DIVIDE_CONFIGURATION}
)

_ALL = (1 << 64) - 1

X2APIC_RESERVED: Final = {
    TPR: _ALL ^ 0xFF,
    EOI: _ALL,
    SVR: _ALL ^ SVR_WRITABLE,
    ESR: _ALL,
    ICR_LOW: 0xFFF << 20 | 3 << 16 | 1 << 13,
    **{lvt: _ALL ^ (writable | LVT_STATUS) for lvt, writable in LVT_WRITABLE.items()},
    LVT_LINT0: _ALL ^ (LVT_WRITABLE[LVT_LINT0] | LVT_STATUS | LVT_REMOTE_IRR),
    LVT_LINT1: _ALL ^ (LVT_WRITABLE[LVT_LINT1] | LVT_STATUS | LVT_REMOTE_IRR),
    INITIAL_COUNT: _ALL ^ 0xFFFFFFFF,
    DIVIDE_CONFIGURATION: _ALL ^ DIVIDE_WRITABLE,
    SELF_IPI: _ALL ^ 0xFF,
}
"""The registers that WRMSR can write, and the bits of each that fault (#GP) when set (section 11.12.1)."""
