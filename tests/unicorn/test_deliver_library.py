"""Delivery in Python (deliver.py) beside the library's own code for it, in guests with all sorts of tables.

Two guests with the same memory, one in each way of running, meet the same event and must end in the same
place with the same registers and stack. Left out is where the library differs from the architecture, which
test_deliver.py has: RF, EXT, limits, #SS of what the TSS names, SS with an IST, task gates (deliver.py's loss).
"""

from __future__ import annotations

import platform
import random
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
import rig
from rig import CODE, GDT, IDT, IST_STACK, KERNEL_STACK, MMIO, RAM, TSS, Guest, ProtectedGuest, code32

from iobus.cpu_registers import Segment
from iobus.exits import Exit, MmioExit, ShutdownExit

if platform.machine() not in ("x86_64", "AMD64"):
    pytest.skip("the library's own delivery is used on x86-64 hosts only", allow_module_level=True)

HANDLERS = 0xC000
"""Below 64 KiB, where a 16-bit gate leads too. Each ends at a device that nobody is."""
HANDLER = {Guest: b"\x8b\x04\x25" + struct.pack("<I", MMIO), ProtectedGuest: b"\xa1" + struct.pack("<I", MMIO)}
EVENTS = {
    "int 0x40": b"\xcd\x40",
    "int 13": b"\xcd\x0d",
    "int3": b"\xcc",
    "ud2": b"\x0f\x0b",
    "mov fs, bad": b"\x66\xb8\x8b\x00\x8e\xe0",
    "page fault": b"\x8b\x04\x25\x00\x00\x00\x40",  # mov eax, [0x40000000], in long mode
}
ENDS_A_BLOCK = code32("""
    eb 00  ; jmp .+2
    eb 00  ; jmp .+2
    f4     ; hlt
""")
ODD = Counter({0x9B: 1, 0x9F: 1, 0x93: 2, 0x91: 1, 0xFB: 1, 0xFF: 1, 0xF3: 2, 0x1B: 1, 0xBB: 1, 0xDB: 1, 0xB3: 1})
"""Access bytes of segments: code, conforming code, data, read-only data, of each level, not present."""


@pytest.fixture(scope="module", params=[Guest, ProtectedGuest], ids=["long", "protected"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Guest, Guest]]:
    guests, before = [], rig.way
    for rig.way in ("native", "fallback"):
        guests.append(request.param(ENDS_A_BLOCK))
        guests[-1].finish()
    rig.way = before
    yield guests[0], guests[1]
    for guest in guests:
        guest.machine.close()


def set_up(guest: Guest, chance: random.Random, event: str, user: bool) -> None:
    """Fill the tables with what is mostly right."""
    long, memory = type(guest) is Guest, guest.memory
    memory.clear()
    guest.start()
    memory.write(CODE, EVENTS[event] if long or event != "page fault" else b"\xcd\x0e")
    for vector in (6, 8, 10, 11, 12, 13, 14, 0x40):
        at = HANDLERS + 32 * vector
        memory.write(at, HANDLER[type(guest)])
        kind = chance.choice([14] * 5 + [12, 6] if long else [14] * 4 + [6, 6, 12, 4, 9])
        access = kind | chance.choice([0x80] * 6 + [0]) | chance.choice([0, 0x60, 0x20])
        selector = chance.choice([8] * 6 + [0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x88, 0, 3, 0xB])
        gate = struct.pack("<HHBBH", at, selector, chance.choice([0, 0, 0, 1, 2]) if long else 0, access, 0)
        memory.write(IDT + (16 if long else 8) * vector, gate)
    for selector in (0x40, 0x48, 0x50) if long else (0x30, 0x38, 0x40, 0x48, 0x50):
        access = chance.choice(list(ODD.elements()))
        memory.write(GDT + selector, struct.pack("<HHBBBB", 0xFFFF, 0, 0, access, 0xCF, 0))
    if long:
        memory.store(TSS + 4, 8, chance.choice([KERNEL_STACK] * 5 + [KERNEL_STACK + 4, 2, 0x40000800]))
        memory.store(TSS + 36, 8, chance.choice([IST_STACK] * 5 + [0, 0x40001010]))
        memory.store(TSS + 44, 8, IST_STACK - 0x100)
    else:
        memory.store(TSS + 4, 4, chance.choice([KERNEL_STACK] * 5 + [0x8000]))
        # The selector is not at fault by being not present: that is a #TS of the library's.
        present = [selector for selector in (0x30, 0x38, 0x40) if memory.load(GDT + selector + 5, 1) & 0x80]
        memory.store(TSS + 8, 4, chance.choice([0x10] * 5 + [0x20, 0x13, 0, 0x88, *present]))
    changed: dict[str, int | Segment] = {"rflags": chance.choice([2, 0x202, 0x4202, 0x3002, 0x40002])}
    if chance.random() < 0.2:
        changed["idt_limit"] = chance.choice([0, 0x67, 0x3FF, 0x13F])
    if chance.random() < 0.2:
        changed["gdt_limit"] = chance.choice([0x37, 0x2F, 0x17])
    if chance.random() < 0.15:
        limit = chance.choice([0, 3, 7, 11, 0x23, 0x66])
        changed["tr"] = Segment(0x28, TSS, limit, 0x8B if long else chance.choice([0x8B, 0x83]))
    if user:
        guest.user(CODE, **changed)
    else:
        guest.set(rip=CODE, **changed)


def outcome(guest: Guest) -> tuple[Exit, list[object]]:
    """Where the guest ends, and what of its registers and stack is the same in both ways."""
    exit = guest.machine.run(timeout=20, unclaimed="stop")
    r, width = guest.vcpu.registers, 8 if type(guest) is Guest else 4
    found: list[object] = [r.rip, r.rsp, r.rflags, r.cr2, r.rax, r.cs, r.ss if width == 4 else r.cpl]
    if isinstance(exit, MmioExit):
        words = range(r.rsp, min(r.rsp + 6 * width, RAM), width)
        found += [guest.memory.load(word, width) & ~0x10001 for word in words]  # without RF and EXT
    guest.machine.reset()
    return exit, found


@pytest.mark.parametrize("event", list(EVENTS))
@pytest.mark.parametrize("user", [False, True], ids=["kernel", "user"])
def test_both_deliver_alike(pair: tuple[Guest, Guest], event: str, user: bool) -> None:
    """40 sets of tables for each event, made by chance but the same in each run; handlers and shutdowns occur."""
    ends = set()
    for number in range(40):
        outcomes = []
        for guest in pair:
            set_up(guest, random.Random(f"{event} {user} {number}"), event, user)
            outcomes.append(outcome(guest))
        assert outcomes[0] == outcomes[1], number
        ends.add(type(outcomes[0][0]))
    assert ends == {MmioExit, ShutdownExit}
