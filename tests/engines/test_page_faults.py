"""A real guest's page faults beside those of `vcpu.load`, `store` and `translate`: the same walk, the same error code.

The guest reads, writes or jumps through tables with every combination of rights; so does the software walk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, Literal

import pytest
from accesses import Accesses, Kind
from bus_devices import Recorder
from hypothesis import given, settings
from hypothesis import strategies as st
from kvm_rig import why_not
from rig import (
    CODE,
    DATA,
    MMIO,
    NX,
    PAGE_DIRECTORY,
    PAGE_TABLE,
    PRESENT,
    STACK,
    USER,
    USER_CODE,
    USER_DATA,
    WINDOW,
    WRITABLE,
    code64,
)

from iobus.engines.kvm import probe
from iobus.exits import PageFault
from iobus.paging import ERROR_P, ERROR_RESERVED

RESERVED: Final = 1 << 51
TARGET: Final = 0x60000
"""In RAM; it holds a HLT for who jumps there."""
DIRECTORY_ENTRY: Final = PAGE_DIRECTORY + (WINDOW >> 21) * 8
FAULTED, DONE = 14, 13
WP: Final = 1 << 16

FLUSH = code64("""
    0f 20 d8  ; mov rax, cr3
    0f 22 d8  ; mov cr3, rax
""")
ACCESS: Final = {"read": "8a 06 f4", "write": "88 06 f4", "fetch": "ff e6"}  # mov al, [rsi]; mov [rsi], al; jmp rsi
USER_PART: Final = CODE + 0x800
TO_USER = (
    bytes([0x6A, USER_DATA | 3, 0x68]) + struct.pack("<I", STACK)  # push ss; push rsp
    + bytes([0x6A, 2, 0x6A, USER_CODE | 3, 0x68]) + struct.pack("<I", USER_PART)  # push rflags, cs, rip
    + bytes.fromhex("48cf")  # iretq
)  # fmt: skip
PAGE_FAULT = code64("""
    8f 07                 ; pop qword ptr [rdi]
    0f 20 d0              ; mov rax, cr2
    48 89 47 08           ; mov [rdi + 8], rax
    c6 47 10 0e           ; mov byte ptr [rdi + 16], 14
    f4                    ; hlt
""")
PROTECTION_FAULT = code64("c6 47 10 0d  ; mov byte ptr [rdi + 16], 13\nf4  ; hlt")  # a HLT at CPL 3


@pytest.fixture(scope="module", params=["unicorn", "kvm"])
def guest(request: pytest.FixtureRequest) -> Iterator[Accesses]:
    """A guest with a device at MMIO, and handlers."""
    if request.param == "kvm" and why_not():
        pytest.skip(why_not())
    kind: Kind = request.param
    with Accesses(kind) as guest:
        guest.machine.mmio.attach(Recorder(0xF4), MMIO, 0x1000)
        guest.gate(FAULTED, PAGE_FAULT, CODE + 0x1000)
        guest.gate(DONE, PROTECTION_FAULT, CODE + 0x1100)
        yield guest


def by_software(guest: Accesses, tables: dict[int, int], access: str, gva: int, user: bool) -> tuple[int, int] | None:
    """The error code and address of the fault that the software walk raises, or None."""
    vcpu = guest.vcpu
    for address, entry in tables.items():
        guest.memory.store(address, 8, entry)
    try:
        if access == "fetch":
            vcpu.translate(gva, user=user, fetch=True)
        elif access == "read":
            vcpu.load(gva, 1, user=user)
        else:
            vcpu.store(gva, 1, 0xF4, user=user)
    except PageFault as fault:
        assert fault.error_code is not None
        return fault.error_code, fault.address
    return None


def by_guest(guest: Accesses, tables: dict[int, int], access: str, gva: int, user: bool) -> tuple[int, int] | None:
    """What the guest's handler was told, or None where the access was made. The guest itself writes the tables."""
    code = bytes.fromhex(ACCESS[access])
    stores = b"".join(
        bytes.fromhex("48b8") + struct.pack("<Q", entry) + bytes.fromhex("48a3") + struct.pack("<Q", address)
        for address, entry in tables.items()  # mov rax, entry; mov [address], rax
    )
    guest.memory.write(CODE, stores + FLUSH + bytes.fromhex("b8f4000000") + (TO_USER if user else code))
    guest.memory.write(USER_PART, code)
    guest.memory.write(DATA, bytes(24))
    guest.set(rip=CODE, rsi=gva, rdi=DATA, rsp=STACK, rflags=2)
    guest.finish()
    if guest.word(16, 1) != FAULTED:
        return None
    error = guest.word()
    if error & ERROR_RESERVED:
        error |= ERROR_P  # which a CPU emulated by QEMU leaves out (SDM vol. 3A, section 4.7: P is set where RSVD is)
    return error, guest.word(8)


@settings(max_examples=300)
@given(
    flags=st.integers(0, 7),
    nx=st.booleans(),
    reserved=st.booleans(),
    above=st.sampled_from([7, 7, 5, 3, 1, 0]),
    above_nx=st.booleans(),
    access=st.sampled_from(["read", "write", "fetch"]),
    user=st.booleans(),
    protect=st.booleans(),
    device=st.booleans(),
)
def test_the_guest_faults_where_the_software_walk_does(
    guest: Accesses, flags: int, nx: bool, reserved: bool, above: int, above_nx: bool,
    access: Literal["read", "write", "fetch"], user: bool, protect: bool, device: bool,
) -> None:  # fmt: skip
    """The same accesses fault, with the same error code and address; the others leave the same A and D bits."""
    flags &= PRESENT | WRITABLE | USER
    # A KVM without the CPU's help remembers translations to devices, whatever becomes of the tables.
    forgetful = guest.kind != "kvm" or not probe.not_hardware()
    target = MMIO if device and access != "fetch" and forgetful else TARGET
    gva = WINDOW + 0x1008
    tables = {
        PAGE_TABLE + 8: target | flags | (NX if nx else 0) | (RESERVED if reserved else 0),
        DIRECTORY_ENTRY: PAGE_TABLE | above | (NX if above_nx else 0),
    }
    guest.memory.write(TARGET + 8, b"\xf4")
    cr0 = guest._start.cr0
    registers = guest._start.restore(guest._start.save())
    registers.cr0 = cr0 | WP if protect else cr0 & ~WP
    guest.vcpu.registers = registers
    results = []
    for way in (by_software, by_guest):
        fault = way(guest, tables, access, gva, user)
        # A CPU may have set A bits on the way to a fault (SDM vol. 3A, section 4.8).
        results.append((fault, [guest.memory.load(address, 8) for address in tables] if fault is None else []))
    assert results[1] == results[0]
