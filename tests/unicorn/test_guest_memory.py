"""Registers and memory of a guest as software sees them: the same as the guest's own CPU does.

`VCPU.registers`, `translate`, `load` and `store` beside a guest that does the access itself on the
Unicorn engine.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import (
    CODE,
    DATA,
    LARGE,
    MMIO,
    NX,
    PAGE_DIRECTORY,
    PAGE_TABLE,
    PRESENT,
    USER,
    WRITABLE,
    Guest,
    RealModeGuest,
    code64,
)

from iobus.cpu_registers import GPRS, Registers, Segment
from iobus.exits import GuestFault, HltExit, MmioExit, PioExit

pytestmark = pytest.mark.usefixtures("way")

WORD = st.integers(0, (1 << 64) - 1)


@pytest.fixture(scope="module")
def idle(way: str) -> Guest:
    with Guest(b"\xf4") as guest:
        yield guest


def segments(access: int) -> st.SearchStrategy[Segment]:
    return st.builds(
        Segment, st.integers(0, 0xFFFF), st.integers(0, (1 << 47) - 1), st.integers(0, 0xFFFFFFFF), st.just(access)
    )


@given(
    st.tuples(*[WORD] * 16), st.integers(0, 0x247FD7 ^ 0x20100), st.lists(segments(0xC093), min_size=5, max_size=5),
    st.tuples(*[st.integers(0, (1 << 47) - 1)] * 4), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_registers_are_what_they_were_set_to(
    idle: Guest, gprs: tuple[int, ...], rflags: int, data: list[Segment], others: tuple[int, ...], run: bool
) -> None:
    """All of them, segments with their hidden parts and all flags, in a CPU that has run and is at rest again."""
    idle.start()
    if run:
        idle.finish()
    r = idle.vcpu.registers
    for name, value in zip(GPRS, gprs, strict=True):
        setattr(r, name, value)
    r.rflags = rflags & 0x245FD7 & ~0x20100 | 2
    r.es, r.ds, r.fs, r.gs, r.ss = data
    r.cs, r.ldt = Segment(0x33, 0, 0xFFFFFFFF, 0xA09B), replace(data[0], access=0x82)
    r.tr = replace(data[1], access=0x8B)
    r.rip, r.gdt_base, r.idt_base, r.cr2 = others
    r.gdt_limit, r.idt_limit = others[0] & 0xFFFF, others[1] & 0xFFFF
    idle.vcpu.registers = r
    assert idle.vcpu.registers == r


def test_registers_after_reset_are_the_architectures() -> None:
    """SDM table 10-1; EDX has the CPU's signature."""
    with Guest(b"\xf4") as guest:
        guest.finish()
        guest.machine.reset()
        assert guest.vcpu.registers == Registers(rdx=0x306C3)


def test_reset_reaches_what_is_not_among_the_registers() -> None:
    """Debug registers, the x87's and SSE's control, MSRs: a guest finds them as at power-on, not as they were left."""
    leave = code64("""
        b8 06 00 01 00     ; mov eax, 0x10006 (an instruction of the next program)
        0f 23 c0           ; mov dr0, rax
        b8 03 04 00 00     ; mov eax, 0x403
        0f 23 f8           ; mov dr7, rax
        c7 07 00 1f 00 00  ; mov dword ptr [rdi], 0x1f00
        0f ae 17           ; ldmxcsr [rdi]
        66 c7 07 7f 02     ; mov word ptr [rdi], 0x27f
        d9 2f              ; fldcw [rdi]
        d9 e8              ; fld1
        b9 76 01 00 00     ; mov ecx, 0x176
        0f 30              ; wrmsr
        b9 82 00 00 c0     ; mov ecx, 0xc0000082
        0f 30              ; wrmsr
        b9 03 01 00 c0     ; mov ecx, 0xc0000103
        0f 30              ; wrmsr
        f4                 ; hlt
    """)
    find = code64("""
        0f ae 1f        ; stmxcsr [rdi]
        d9 7f 04        ; fnstcw [rdi + 4]
        dd 7f 08        ; fnstsw [rdi + 8]
        41 0f 21 c0     ; mov r8, dr0
        0f 21 fb        ; mov rbx, dr7
        b9 76 01 00 00  ; mov ecx, 0x176
        0f 32           ; rdmsr
        41 89 c1        ; mov r9d, eax
        b9 82 00 00 c0  ; mov ecx, 0xc0000082
        0f 32           ; rdmsr
        41 89 c2        ; mov r10d, eax
        b9 03 01 00 c0  ; mov ecx, 0xc0000103
        0f 32           ; rdmsr
        f4              ; hlt
    """)
    with Guest(leave) as guest:
        guest.finish()
        guest.machine.reset()
        guest.memory.write(CODE, find)
        guest.start()
        r = guest.finish()
        assert (r.r8 & 0xFFFFFFFF, r.rbx) == (0, 0x400)
        assert (guest.word(0, 4), guest.word(4, 2), guest.word(8, 2)) == (0x1F80, 0x40, 0)
        assert (r.r9, r.r10, r.rax) == (0, 0, 0)


def test_flags_are_known_in_the_middle_of_a_block() -> None:
    """While an exit waits, RFLAGS are those the guest's last instructions made, lazily computed or not."""
    program = code64("""
        fd        ; std
        31 c0     ; xor eax, eax
        83 e8 01  ; sub eax, 1
        e4 10     ; in al, 0x10
        f4        ; hlt
    """)
    with Guest(program) as guest:
        assert isinstance(guest.vcpu.run(), PioExit)
        assert guest.vcpu.registers.rflags == 0x2 | 0x400 | 0x95  # DF; CF PF AF SF
        guest.finish()
        assert guest.vcpu.registers.rflags == 0x2 | 0x400 | 0x95


def test_the_guest_runs_with_the_segments_it_is_given() -> None:
    """Bases that no descriptor has: FS and GS in long mode, DS and SS in real mode."""
    program = code64("""
        64 8b 04 25 10 00 00 00  ; mov eax, fs:[0x10]
        65 8b 0c 25 10 00 00 00  ; mov ecx, gs:[0x10]
        f4                       ; hlt
    """)
    with Guest(program) as guest:
        guest.memory.write(DATA, bytes(range(0x40)))
        guest.set(fs=Segment(0, DATA, 0, 0xC093), gs=Segment(0, DATA + 0x10, 0, 0xC093))
        r = guest.finish()
        assert (r.rax, r.rcx) == (0x13121110, 0x23222120)
    with RealModeGuest(b"\xa0\x10\x00\x58\xf4") as guest:  # mov al, [0x10]; pop ax
        guest.memory.write(0x12340, b"\xab" * 0x20)
        guest.memory.write(0x56780, b"\xcd" * 0x20)
        guest.set(ds=Segment(0, 0x12340, 0xFFFF, 0x93), ss=Segment(0, 0x56780, 0xFFFF, 0x93), rsp=0x10)
        guest.vcpu.run()
        assert guest.vcpu.registers.rax == 0xCDCD
        assert guest.vcpu.load(0x10, 1) == guest.memory.load(0x10, 1)


def test_code_runs_at_address_0() -> None:
    """It is an address like any other, where software jumps by mistake, or where its memory starts."""
    with Guest(b"\xff\xe0") as guest:  # jmp rax
        guest.memory.write(0, b"\xb8\x07\0\0\0\xf4")
        r = guest.finish()
        assert (r.rax, r.rip) == (7, 6)


# Memory.


def test_load_and_store_reach_what_the_guest_reaches() -> None:
    """Eight pages, mapped in another order: what the guest copied out is what `load` gives, and the reverse."""
    program = code64("""
        be 00 00 00 40  ; mov esi, 0x40000000
        b9 00 80 00 00  ; mov ecx, 0x8000
        f3 a4           ; rep movsb
        f4              ; hlt
    """)
    with Guest(program) as guest:
        content = bytes(index * 7 + index // 256 & 0xFF for index in range(0x8000))
        for page in range(8):
            start = guest.map(page, 0x100000 + 0x1000 * (page * 5 % 8))
            assert guest.vcpu.store(start, 4096, int.from_bytes(content[4096 * page :][:4096], "little")) is None
        guest.finish()
        assert guest.memory.read(DATA, 0x8000) == content
        for at, size in ((0, 1), (0xFFF, 2), (0x1FFD, 8), (0x7FFF, 1), (0x123, 0x5000)):
            assert guest.vcpu.load(0x40000000 + at, size) == int.from_bytes(content[at : at + size], "little")


def test_load_and_store_in_real_mode_and_at_mmio() -> None:
    """Without paging a linear address is physical; what is no RAM comes as an exit, as from the guest."""
    with RealModeGuest(b"\xf4") as guest:
        guest.finish()
        guest.memory.store(0x500, 4, 0x12345678)
        assert guest.vcpu.load(0x501, 2) == 0x3456
        exit = guest.vcpu.load(MMIO, 2)
        assert exit == MmioExit(MMIO, 2, False)
        exit.data = 0xBEEF
        assert guest.vcpu.load(MMIO, 2) == 0xBEEF


ACCESSES = {
    "read": code64("""
        8b 06  ; mov eax, [rsi]
        cd 80  ; int 0x80
    """),
    "write": code64("""
        89 06  ; mov [rsi], eax
        cd 80  ; int 0x80
    """),
    "fetch": code64("""
        ff e6  ; jmp rsi
    """),
}
FAULTED, DONE = 0x11000, 0x12000


@pytest.mark.parametrize("access", list(ACCESSES))
@pytest.mark.parametrize("user", [False, True], ids=["supervisor", "user"])
def test_translate_faults_as_the_guest_does(access: str, user: bool) -> None:
    """Every combination of what a page allows and what protections are on: the same outcome and error code.

    The guest does the access and its #PF handler keeps the error code; `translate` is asked the same
    question before, and marks the page table entry (accessed, dirty) as the guest's CPU does.
    """
    outcomes = set()
    with Guest(b"") as guest:
        # The guest's own page is the supervisor's, for SMEP and SMAP; its user code is in the window.
        guest.memory.store(PAGE_DIRECTORY, 8, PRESENT | WRITABLE | LARGE)
        guest.gate(
            14,
            code64("""
            5a  ; pop rdx
            f4  ; hlt
        """),
            FAULTED,
        )
        guest.gate(0x80, b"\xf4", DONE, dpl=3)
        guest.memory.write(CODE, ACCESSES[access])
        guest.memory.write(0x100000, b"\xcd\x80")  # INT 0x80, where a fetch succeeds
        code = guest.map(1, CODE, PRESENT | USER)
        if user:
            guest.user(code)
        start = guest.vcpu.registers
        for allowed in itertools.product((0, PRESENT), (0, WRITABLE), (0, USER), (0, NX), (0, 1 << 44)):
            for smap_smep, ac, wp in itertools.product((0, 0x300000), (0, 1 << 18), (0, 1 << 16)):
                gva = guest.map(0, 0x100000, sum(allowed))
                guest.vcpu.registers = replace(
                    start, rsi=gva, rflags=2 | ac, cr4=0x620 | smap_smep, cr0=0x80000033 | wp
                )
                try:
                    guest.vcpu.translate(gva, write=access == "write", fetch=access == "fetch")
                    expected = (DONE, None)
                except GuestFault as fault:
                    expected = (FAULTED, fault.error_code)
                marked = guest.memory.load(PAGE_TABLE, 8)
                guest.map(0, 0x100000, sum(allowed))
                assert guest.vcpu.run() == HltExit()
                r = guest.vcpu.registers
                faulted = r.rip < DONE
                assert (FAULTED if faulted else DONE, r.rdx if faulted else None) == expected
                assert not faulted or r.cr2 == gva
                assert guest.memory.load(PAGE_TABLE, 8) == marked
                outcomes.add(expected)
    assert len(outcomes) >= (4 if access == "fetch" else 3)
