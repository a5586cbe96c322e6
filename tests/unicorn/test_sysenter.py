"""SYSENTER on the Unicorn engine, by the Intel SDM vol. 2B. Both from 64-bit and from 32-bit code."""

import pytest
from rig import CODE, CODE64, DATA64, KERNEL_STACK, STACK, USER_CODE, USER_DATA, Guest, code64

from iobus.cpu_registers import Segment

ENTRY = CODE + 0x400
SETUP = code64(f"""
    b9 74 01 00 00                             ; mov ecx, 0x174 (IA32_SYSENTER_CS)
    b8 08 00 00 00                             ; mov eax, 8
    31 d2                                      ; xor edx, edx
    0f 30                                      ; wrmsr
    ff c1                                      ; inc ecx (IA32_SYSENTER_ESP)
    b8 {STACK.to_bytes(4, "little").hex()}     ; mov eax, STACK
    0f 30                                      ; wrmsr
    ff c1                                      ; inc ecx (IA32_SYSENTER_EIP)
    b8 {ENTRY.to_bytes(4, "little").hex()}     ; mov eax, ENTRY
    0f 30                                      ; wrmsr
    f4                                         ; hlt
""")
SYSENTER = b"\x90\x0f\x34"
HLT = b"\xf4"
FLAGS = 0x40AD7  # AC, OF, IF, SF, ZF, AF, PF, CF
IF = 0x200


@pytest.mark.parametrize("long_mode", [True, False])
def test_sysenter_goes_to_the_kernel_at_the_msrs_addresses(long_mode: bool) -> None:
    """CS and SS are flat and of level 0, RSP and RIP the MSRs'; IF is cleared and no other flag changes."""
    with Guest(SETUP) as guest:
        guest.finish()
        guest.memory.write(CODE + 0x100, SYSENTER)
        guest.memory.write(ENTRY, HLT)
        guest.user(CODE + 0x100, rflags=FLAGS, rsp=0x1234)
        if not long_mode:
            guest.set(cr0=0x11, cr4=0, efer=0, cs=Segment(USER_CODE | 3, 0, 0xFFFFFFFF, 0xC0FB))
        end = guest.finish()
        assert (end.rip, end.rsp, end.rflags) == (ENTRY + 1, STACK, FLAGS & ~IF)
        assert end.cs == Segment(CODE64, 0, 0xFFFFFFFF, 0xA09B if long_mode else 0xC09B)
        assert end.ss == Segment(DATA64, 0, 0xFFFFFFFF, 0xC093)
        assert end.cpl == 0
        assert end.ds.selector == USER_DATA | 3  # the others stay


def test_sysenter_without_a_target_is_a_protection_fault() -> None:
    """IA32_SYSENTER_CS = 0: #GP(0) at the instruction."""
    with Guest(b"") as guest:
        guest.memory.write(CODE + 0x100, SYSENTER)
        guest.gate(13, HLT, ENTRY)
        guest.user(CODE + 0x100)
        end = guest.finish()
        frame = [guest.memory.load(end.rsp + 8 * index, 8) for index in range(3)]
        assert frame == [0, CODE + 0x101, USER_CODE | 3]
        assert end.rsp == KERNEL_STACK - 48 and end.rip == ENTRY + 1
