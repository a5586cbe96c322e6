"""What user code may do in a guest: which ports it may use, and what SMAP has to do with its own IRET.

By the Intel SDM: vol. 1, "I/O Privilege Level" and "I/O Permission Bit Map"; vol. 3A, "Determination of Access
Rights", for SMAP. In both ways of the Unicorn engine; what the fallback lacks is in test_fallback.py.
"""

from __future__ import annotations

import pytest
from rig import (
    CODE,
    DATA,
    KERNEL_STACK,
    LARGE,
    PAGE_DIRECTORY,
    PRESENT,
    STACK,
    TSS,
    USER,
    USER_CODE,
    USER_DATA,
    WRITABLE,
    Guest,
    code64,
)

from iobus.exits import PioExit

pytestmark = pytest.mark.usefixtures("way")

PORTS, SMAP = "ports that are denied", "SMAP"
HANDLERS = CODE + 0x1000
GP, PF, DONE = 13, 14, 0x80


class PrivilegeGuest(Guest):
    """#GP, #PF and INT 0x80, which user code may use, end it; `ended` says which, with error code and RIP."""

    def __init__(self, program: bytes) -> None:
        super().__init__(program + b"\xcd\x80")
        self.memory.store(TSS + 0x66, 2, 0x68)  # the I/O permission bit map is beyond the limit: there is none
        for vector in (GP, PF, DONE):
            keep = code64("""
                0f 01 cb  ; stac
                5b        ; pop rbx
                5a        ; pop rdx
                f4        ; hlt
            """)
            named = b"\x6a\x00" if vector == DONE else b""  # push 0
            self.gate(vector, named + bytes((0xBD, vector, 0, 0, 0)) + keep, HANDLERS + 0x40 * vector, dpl=3)

    @property
    def ended(self) -> tuple[int, int, int]:
        """Vector, error code and RIP."""
        r = self.vcpu.registers
        return r.rbp, r.rbx, r.rdx

    def bit_map(self, *, denied: range | tuple[int, ...], limit: int) -> None:
        """Have an I/O permission bit map right behind the TSS, whose limit is `limit`."""
        allowed = bytearray(0x2001)
        for port in denied:
            allowed[port >> 3] |= 1 << (port & 7)
        self.memory.write(TSS + 0x68, bytes(allowed))
        task = self.vcpu.registers.tr
        self.set(tr=type(task)(task.selector, TSS, limit, 0x8B))


INSTRUCTIONS = {
    "in al, imm8": ("e4 80", 2),
    "in eax, dx": ("ed", 1),
    "out imm8, al": ("e6 80", 2),
    "out dx, ax": ("66 ef", 2),
    "insb": ("6c", 1),
    "rep insb": ("f3 6c", 2),
    "outsd": ("6f", 1),
}


def run(guest: PrivilegeGuest) -> list[PioExit]:
    """Run to the end; return the accesses to ports."""
    made = []
    while isinstance(exit := guest.vcpu.run(), PioExit):
        exit.data = 0x55
        made.append(exit)
    return made


@pytest.mark.lost(PORTS)
@pytest.mark.parametrize("name", list(INSTRUCTIONS))
def test_user_code_may_not_use_ports(name: str) -> None:
    """CPL above IOPL and no bit map: #GP with error code 0 at the instruction, and nothing has happened."""
    code, _ = INSTRUCTIONS[name]
    with PrivilegeGuest(bytes.fromhex(code)) as guest:
        guest.user(CODE, rdx=0x80, rcx=3, rsi=DATA, rax=0x1234)
        before = guest.vcpu.registers
        assert run(guest) == []
        assert guest.ended == (GP, 0, CODE)
        after = guest.vcpu.registers
        assert (after.rax, after.rcx, after.rdi, after.rsi) == (before.rax, before.rcx, before.rdi, before.rsi)
        assert guest.word() == 0


@pytest.mark.parametrize("name", list(INSTRUCTIONS))
def test_user_code_with_iopl_3_may_use_ports(name: str) -> None:
    """CPL is not above IOPL: nobody looks at a bit map."""
    code, length = INSTRUCTIONS[name]
    with PrivilegeGuest(bytes.fromhex(code)) as guest:
        guest.user(CODE, rdx=0x80, rcx=3, rsi=DATA, rflags=0x3002)
        assert {exit.address for exit in run(guest)} == {0x80}
        assert guest.ended == (DONE, 0, CODE + length + 2)


@pytest.mark.lost(PORTS)
@pytest.mark.parametrize(
    ("port", "size", "allowed"),
    [(0x80, 1, True), (0x81, 1, False), (0x80, 2, False), (0x82, 4, True), (0x7E, 2, True), (0x7F, 4, False),
     (0x400, 1, True), (0x407, 1, True), (0x408, 1, False), (0xFFFF, 1, False)],
)  # fmt: skip
def test_the_bit_map_allows_single_ports(port: int, size: int, allowed: bool) -> None:
    """All bits of the access must be 0, and within the TSS's limit, which has a byte of ones behind the last."""
    code = {1: "ee", 2: "66 ef", 4: "ef"}[size]
    with PrivilegeGuest(bytes.fromhex(code)) as guest:
        guest.bit_map(denied=(0x81,), limit=0x68 + 0x80 + 1)
        guest.user(CODE, rdx=port, rax=0x11223344)
        made = run(guest)
        assert [(exit.address, exit.size) for exit in made] == [(port, size)] * allowed
        assert guest.ended[0] == (DONE if allowed else GP)


# SMAP.

IRETQ = code64("""
    6a 23     ; push USER_DATA | 3
    54        ; push rsp
    9c        ; pushfq
    6a 2b     ; push USER_CODE | 3
    48 8d 05 03 00 00 00  ; lea rax, [rip + 3]
    50        ; push rax
    48 cf     ; iretq
""")
LRETQ = code64("""
    6a 2b     ; push USER_CODE | 3
    48 8d 05 04 00 00 00  ; lea rax, [rip + 4]
    50        ; push rax
    48 cb     ; retfq
    90        ; nop
""")


class SmapGuest(PrivilegeGuest):
    """User code and its stack in the window, all else the supervisor's; SMAP is on."""

    def __init__(self, program: bytes) -> None:
        super().__init__(program)
        self.memory.store(PAGE_DIRECTORY, 8, PRESENT | WRITABLE | LARGE)
        self.code = self.map(1, CODE, PRESENT | USER)
        self.stack = self.map(2, DATA, PRESENT | WRITABLE | USER) + 0x1000
        assert (USER_DATA | 3, USER_CODE | 3) == (0x23, 0x2B)
        self.user(self.code, rsp=self.stack, cr4=0x620 | 1 << 21)


@pytest.mark.lost(SMAP)
@pytest.mark.parametrize(("name", "code"), [("iretq", IRETQ), ("retfq", LRETQ)])
def test_smap_is_nothing_to_user_codes_own_returns(name: str, code: bytes) -> None:
    """IRET and far RET at CPL 3 read the user's stack as the user's, many times over."""
    with SmapGuest(code * 3) as guest:
        run(guest)
        assert guest.ended == (DONE, 0, guest.code + 3 * len(code) + 2)


@pytest.mark.lost(SMAP)
@pytest.mark.parametrize(("name", "code"), [("iretq", IRETQ), ("retfq", LRETQ)])
def test_a_fault_of_such_a_return_is_the_users(name: str, code: bytes) -> None:
    """Its stack is not there: the error code has U/S set, and SMAP is on afterwards."""
    pop = b"\x48\xcf" if name == "iretq" else b"\x48\xcb"
    with SmapGuest(pop) as guest:
        gone = guest.map(3, 0, 0)
        guest.set(rsp=gone + 0x100)
        run(guest)
        assert guest.ended == (PF, 4, guest.code)
        assert guest.vcpu.registers.cr2 == gone + 0x100
        assert guest.vcpu.registers.cr4 & 1 << 21


@pytest.mark.lost(SMAP)
def test_the_supervisor_is_still_kept_out_of_what_such_a_return_has_read() -> None:
    """The page that IRET read at CPL 3 faults when the kernel reads it with AC clear: #PF, protection, read."""
    with SmapGuest(IRETQ) as guest:
        read = code64("""
            48 8b 04 24     ; mov rax, [rsp]
            48 8b 44 24 18  ; mov rax, [rsp + 24]
            48 8b 00        ; mov rax, [rax]
        """)
        guest.gate(DONE, read, HANDLERS + 0x40 * DONE, dpl=3)
        run(guest)
        assert guest.ended == (PF, 1, HANDLERS + 0x40 * DONE + 9)
        assert KERNEL_STACK > guest.vcpu.registers.rsp < STACK
