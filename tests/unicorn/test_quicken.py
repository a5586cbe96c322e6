"""`quicken` of stubs.s: translated blocks look themselves whether to leave, and call the library for a reason only."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import rig
from rig import CODE, Guest, code64

from iobus.engines.unicorn.internals import Blocks
from iobus.engines.unicorn.native_instance import NativeInstance
from iobus.engines.unicorn.stubs import Stubs, Table
from iobus.exits import KickExit

UC = 0x5555_6666_7777
DESCRIPTOR = bytes(range(160))
"""What lies before a block, which is 192 bytes behind its start."""

CHECK = code64("""
    48 89 7d 08  ; mov [rbp + 8], rdi
    89 75 10     ; mov [rbp + 16], esi
    48 8b 04 24  ; mov rax, [rsp]
    48 89 45 18  ; mov [rbp + 24], rax
    c3           ; ret
""")
"""In place of the library's function: it leaves its arguments and where it was called from."""

DRIVER = code64("""
    55              ; push rbp
    48 89 fd        ; mov rbp, rdi
    bf 11 11 00 00  ; mov edi, 0x1111
    be 22 22 00 00  ; mov esi, 0x2222
    ff d2           ; call rdx
    5d              ; pop rbp
    c3              ; ret
""")


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    """These are about guest-mode intercepts, which have stubs."""
    before, rig.way = rig.way, "native"
    try:
        with Guest(b"\xf4"):
            yield
    finally:
        rig.way = before


class Call(NamedTuple):
    """What the check was called with; zeros where it was not."""

    uc: int
    flag: int
    back: int


class Buffer:
    """Memory with a block in each form that the library gives them, and the stubs for it."""

    def __init__(self) -> None:
        memory = mmap.mmap(-1, 0x2000, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.memory = memory
        self.check, self.driver, self.env = self.base + 0x1000, self.base + 0x1100, self.base + 0x1210
        memory[0x1000 : 0x1000 + len(CHECK)] = CHECK
        memory[0x1100 : 0x1100 + len(DRIVER)] = DRIVER
        start = b"\x48\xbf" + UC.to_bytes(8, "little") + b"\x33\xf6"
        far = start + b"\xff\x15" + (6).to_bytes(4, "little") + b"\xc3" + b"\x90" * 5 + self.check.to_bytes(8, "little")
        near = start + b"\xe8" + (self.check - (self.base + 448 + 17)).to_bytes(4, "little", signed=True) + b"\xc3"
        self.blocks = {"far": self.base + 192, "near": self.base + 448}
        for place, block in ((0, far), (256, near)):
            memory[place : place + 160] = DESCRIPTOR
            memory[place + 192 : place + 192 + len(block)] = block
        memory[0x1300:0x1308] = (self.base + 512).to_bytes(8, "little")  # the end of what is translated
        memory[0x1308:0x1310] = self.base.to_bytes(8, "little")
        head = int.from_bytes(start[:8], "little"), int.from_bytes(start[8:], "little")
        quick = int.from_bytes(bytes.fromhex("837df000790ce8d5"), "little")
        self.page = ctypes.CFUNCTYPE(ctypes.c_uint64)(lambda: (1 << 64) - 1)  # no page of RAM
        self.table = Table(
            code_page=ctypes.cast(self.page, ctypes.c_void_p).value,
            **vars(Blocks(self.base + 0x1300, self.base + 0x1308, self.base, *head, self.check, quick)),
        )
        self.stubs = Stubs(self.table)

    def quicken(self) -> None:
        """Have the library's hook called."""
        tb = (ctypes.c_uint64 * 2)(0x1000, 1 << 16)
        hook = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(self.stubs.edge)
        hook(None, ctypes.addressof(tb), None, ctypes.addressof(self.table))

    def run(self, block: int, flag: int) -> Call:
        """Run a block with the flag before ENV; return what the check was called with."""
        env = self.env - self.base
        self.memory[env - 16 : env + 32] = flag.to_bytes(4, "little", signed=True) + bytes(44)
        ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(self.driver)(self.env, None, block)
        return Call(*(int.from_bytes(self.memory[env + at : env + at + 8], "little") for at in (8, 16, 24)))


@pytest.mark.parametrize("form", ["far", "near"])
def test_a_block_calls_where_the_flag_says_so_and_not_else(form: str) -> None:
    """With the same arguments and from inside itself; nothing but its start and the room before it has changed."""
    buffer = Buffer()
    block = buffer.blocks[form]
    called = buffer.run(block, -1)
    assert called[:2] == (UC, 0) == buffer.run(block, 0)[:2], "the library's own calls always"
    before = bytes(buffer.memory[:512])
    buffer.quicken()
    assert buffer.run(block, 0) == buffer.run(block, 0x7FFFFFFF) == Call(0, 0, 0)
    quick = buffer.run(block, -1)
    assert quick[:2] == (UC, 0) and block < quick.back < called.back
    at, length = block - buffer.base, called.back - block
    for start, end in ((at - 192, at - 32), (at + length, at + 64)):
        assert buffer.memory[start:end] == before[start:end]


def test_nothing_else_is_changed() -> None:
    """A block of another engine, one that calls something else, and one beyond the end stay as they are."""
    buffer = Buffer()
    buffer.memory[192 + 3] ^= 1
    buffer.table.check_exit += 1
    buffer.memory[0x1300:0x1308] = (buffer.base + 480).to_bytes(8, "little")
    before = bytes(buffer.memory)
    buffer.quicken()
    assert bytes(buffer.memory) == before
    assert buffer.table.swept == buffer.base + 480


def test_a_buffer_that_was_emptied_is_swept_from_its_start() -> None:
    """The end of the code lies before that of the last look then."""
    buffer = Buffer()
    buffer.table.swept = buffer.base + 0x800
    buffer.quicken()
    assert buffer.run(buffer.blocks["far"], 0) == Call(0, 0, 0)


LOOP = code64("""
    48 ff c1  ; inc rcx
    eb 00     ; jmp .+2
    48 ff c2  ; inc rdx
    eb f6     ; jmp .-8
""")


def instance(guest: Guest) -> NativeInstance:
    engine: Any = guest.machine.engine
    found = engine._instance
    assert isinstance(found, NativeInstance)
    return found


def blocks(guest: Guest) -> tuple[int, int]:
    """How many blocks begin as we have them, and how many as the library made them."""
    table = instance(guest)._table
    start = ctypes.c_uint64.from_address(table.buffer).value + 63 & -64
    code = ctypes.string_at(start, max(0, ctypes.c_uint64.from_address(table.generated).value - start))
    heads = [code[at : at + 8] for at in range(0, len(code), 64)]
    return heads.count(table.quick.to_bytes(8, "little")), heads.count(table.head.to_bytes(8, "little"))


def test_the_state_is_exact_wherever_a_guest_is_stopped() -> None:
    """Two blocks that count in turn: at each of many stops RIP says which one is next, and the counts agree."""
    with Guest(LOOP) as guest:
        guest.set(rcx=0, rdx=0)
        stops = 0
        while stops < 300:
            threading.Timer(0.0002, guest.vcpu.kick).start()
            assert guest.vcpu.run() == KickExit()
            r = guest.vcpu.registers
            assert (r.rip, r.rcx - r.rdx) in ((CODE, 0), (CODE + 5, 1))
            stops += r.rcx > 0  # a kick may come before the first step


def test_the_blocks_of_a_guest_are_quick() -> None:
    """Both of this one's, also after the library has dropped all that it had translated."""
    with Guest(LOOP + b"\xf4") as guest:
        for _ in range(2):
            while sum(blocks(guest)) < 2:  # a kick may come before the first step
                threading.Timer(0.01, guest.vcpu.kick).start()
                guest.vcpu.run()
            assert blocks(guest) == (2, 0)
            library: Any = instance(guest).library
            library.function("tb_flush_x86_64", None, ctypes.c_void_p)(instance(guest)._cpu)
