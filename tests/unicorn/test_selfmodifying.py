"""Code that is written while it runs: what the guest executes is always what its memory holds.

By the Intel SDM vol. 3A, section 9.1.3, code modified through the address it runs at is seen at once,
and through another address after a branch and a serializing instruction; this CPU needs no more than
the branch. What software writes (DMA) is seen by code entered afterwards.
"""

from __future__ import annotations

import threading
import time

import pytest
from rig import CODE, DATA, NX, PRESENT, USER, WINDOW, WRITABLE, Guest, Vectors, code64

from iobus.bus import Device
from iobus.exits import HltExit, KickExit, PioExit

pytestmark = pytest.mark.usefixtures("way")

FUNCTION = CODE + 0x1000
"""Where a function that is patched lies: MOV EAX, imm32; RET. Another is 0x40 behind it, on its page."""
HANDLERS = CODE + 0x2000

STORES = {
    "MOV": code64("""
        89 06  ; mov [rsi], eax
    """),
    "MOV of a byte": code64("""
        88 06  ; mov [rsi], al
    """),
    "LOCK XCHG": code64("""
        f0 87 06  ; lock xchg [rsi], eax
    """),
    "LOCK ADD": code64("""
        2b 06     ; sub eax, [rsi]
        f0 01 06  ; lock add [rsi], eax
    """),
    "SSE": code64("""
        66 0f 6e c0  ; movd xmm0, eax
        f3 0f 11 06  ; movss [rsi], xmm0
    """),
    "REP STOSB": code64("""
        48 87 fe        ; xchg rsi, rdi
        b9 01 00 00 00  ; mov ecx, 1
        f3 aa           ; rep stosb
        48 ff cf        ; dec rdi
        48 87 fe        ; xchg rsi, rdi
    """),
    "PUSH": code64("""
        48 89 e2     ; mov rdx, rsp
        48 8d 66 04  ; lea rsp, [rsi + 4]
        66 50        ; push ax
        66 50        ; push ax
        48 89 d4     ; mov rsp, rdx
        66 89 4e 02  ; mov [rsi + 2], cx
    """),
}


def function(value: int) -> bytes:
    """MOV EAX, value; RET."""
    return b"\xb8" + value.to_bytes(4, "little") + b"\xc3"


def patcher(store: bytes) -> bytes:
    """Patch and call the two functions in turn, 200 times; end at once with EBX not 0 where one was stale."""
    start = code64("""
        bb c8 00 00 00  ; mov ebx, 200
        31 c9           ; xor ecx, ecx
    """)
    call = code64("""
        ff d7        ; call rdi
        39 d8        ; cmp eax, ebx
        75 0c        ; jne .+0x0e
        48 83 f6 40  ; xor rsi, 0x40
        48 83 f7 40  ; xor rdi, 0x40
        ff cb        ; dec ebx
    """)
    before = (
        code64("""
        89 d8  ; mov eax, ebx
    """)
        + store
        + call
    )
    back = -(len(before) + 2)
    return start + before + b"\x75" + back.to_bytes(1, "little", signed=True) + b"\xcd\x80"


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("mapping", ["same", "second, not executable", "second, executable"])
@pytest.mark.parametrize("store", list(STORES))
def test_every_patch_is_seen(store: str, mapping: str, cpl: int) -> None:
    """200 patches of two functions on one page, by every kind of store, through the same and another mapping."""
    with Guest(patcher(STORES[store])) as guest:
        guest.gate(0x80, b"\xf4", HANDLERS, dpl=3)
        for offset in (0, 0x40):
            guest.memory.write(FUNCTION + offset, function(0))
        patched = FUNCTION
        if mapping != "same":
            patched = guest.map(0, FUNCTION, PRESENT | WRITABLE | USER | (NX if "not" in mapping else 0))
        if cpl == 3:
            guest.user(CODE)
        guest.set(rsi=patched + 1, rdi=FUNCTION)
        assert guest.finish().rbx == 0


def test_a_patch_of_the_instruction_behind_it_is_seen() -> None:
    """In the same block of code, through the same mapping: the CPU does not run what it fetched before."""
    program = code64("""
        bb 64 00 00 00     ; mov ebx, 100
        89 1d 01 00 00 00  ; mov [rip + 1], ebx
        b8 00 00 00 00     ; mov eax, 0
        01 c1              ; add ecx, eax
        ff cb              ; dec ebx
        75 ef              ; jnz .-15
        f4                 ; hlt
    """)
    with Guest(program) as guest:
        assert guest.finish().rcx == 5050


def test_a_patch_of_the_second_page_of_an_instruction_is_seen() -> None:
    """A function across two pages, whose immediate lies on the second: by a second mapping and by DMA."""
    program = code64("""
        ff d7  ; call rdi
        89 c1  ; mov ecx, eax
        89 1e  ; mov [rsi], ebx
        ff d7  ; call rdi
        e5 10  ; in eax, 0x10
        ff d7  ; call rdi
        f4     ; hlt
    """)
    with Guest(program) as guest:
        guest.memory.write(FUNCTION - 1, function(1))
        guest.set(rdi=FUNCTION - 1, rsi=guest.map(0, FUNCTION, PRESENT | WRITABLE | NX), rbx=2)
        assert guest.vcpu.run() == PioExit(0x10, 4, False)
        r = guest.vcpu.registers
        assert (r.rcx, r.rax) == (1, 2)
        guest.memory.store(FUNCTION, 4, 3)
        assert guest.finish().rax == 3


def test_a_page_is_code_then_data_then_code_again() -> None:
    """50 rounds: copy a function there through a data mapping, call it, use the page as data, and so on."""
    program = code64("""
        bb 32 00 00 00        ; mov ebx, 50
        89 1c 25 01 00 03 00  ; mov [0x30001], ebx
        be 00 00 03 00        ; mov esi, 0x30000
        bf 00 00 00 40        ; mov edi, 0x40000000
        b9 06 00 00 00        ; mov ecx, 6
        f3 a4                 ; rep movsb
        41 ff d0              ; call r8
        48 01 c2              ; add rdx, rax
        31 c0                 ; xor eax, eax
        bf 00 00 00 40        ; mov edi, 0x40000000
        b9 00 02 00 00        ; mov ecx, 512
        f3 48 ab              ; rep stosq
        41 b9 00 00 00 40     ; mov r9d, 0x40000000
        41 ff 41 08           ; inc dword ptr [r9 + 8]
        41 ff 41 08           ; inc dword ptr [r9 + 8]
        45 03 51 08           ; add r10d, [r9 + 8]
        ff cb                 ; dec ebx
        75 bd                 ; jnz .-65
        f4                    ; hlt
    """)
    for flags in (PRESENT | WRITABLE | NX, PRESENT | WRITABLE):
        with Guest(program) as guest:
            guest.memory.write(DATA, function(0))
            guest.map(0, FUNCTION, flags)
            guest.set(r8=FUNCTION)
            r = guest.finish()
            assert (r.rdx, r.r10) == (50 * 51 // 2, 100)


def test_a_page_mapped_for_all_is_code_once_it_was_written() -> None:
    """The same through one mapping that allows everything: the guest writes a function and calls it there."""
    program = code64("""
        bb 32 00 00 00        ; mov ebx, 50
        bf 00 00 00 40        ; mov edi, 0x40000000
        c6 07 b8              ; mov byte ptr [rdi], 0xb8
        89 5f 01              ; mov [rdi + 1], ebx
        c6 47 05 c3           ; mov byte ptr [rdi + 5], 0xc3
        ff d7                 ; call rdi
        48 01 c2              ; add rdx, rax
        48 81 c7 00 01 00 00  ; add rdi, 0x100
        ff cb                 ; dec ebx
        75 e5                 ; jnz .-25
        f4                    ; hlt
    """)
    with Guest(program) as guest:
        for page in range(4):
            guest.map(page, FUNCTION + 0x1000 * page)
        assert guest.finish().rdx == 50 * 51 // 2


def test_code_follows_a_change_of_the_page_tables() -> None:
    """INVLPG after another page was put at the address: its code runs, also where the old was translated."""
    program = code64("""
        ff d6                    ; call rsi
        89 c1                    ; mov ecx, eax
        48 89 3c 25 00 70 00 00  ; mov [0x7000], rdi
        0f 01 3e                 ; invlpg [rsi]
        ff d6                    ; call rsi
        f4                       ; hlt
    """)
    with Guest(program) as guest:
        guest.memory.write(FUNCTION, function(1))
        guest.memory.write(FUNCTION + 0x1000, function(2))
        guest.map(0, FUNCTION)
        guest.set(rsi=WINDOW, rdi=FUNCTION + 0x1000 | PRESENT | WRITABLE)
        r = guest.finish()
        assert (r.rcx, r.rax) == (1, 2)


# What software writes.


class Patch(Device):
    """Writes a function of the value at each write."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def write(self, offset: int, size: int, value: int) -> None:
        self.guest.memory.write(FUNCTION, function(value))


CALLER = code64("""
    bb 64 00 00 00  ; mov ebx, 100
    89 d8           ; mov eax, ebx
    e6 10           ; out 0x10, al
    ff d7           ; call rdi
    01 c1           ; add ecx, eax
    ff cb           ; dec ebx
    75 f2           ; jnz .-12
    f4              ; hlt
""")


def test_dma_in_a_device_callback_is_seen_by_the_next_call() -> None:
    """A device writes the function that the guest calls behind the access, 100 times."""
    with Guest(CALLER) as guest:
        guest.memory.write(FUNCTION, function(0))
        guest.machine.pio.attach(Patch(guest), 0x10, 1)
        guest.set(rdi=FUNCTION)
        assert guest.finish().rcx == 5050


@pytest.mark.parametrize("by", ["memory", "dma", "store"])
def test_what_the_caller_writes_at_an_exit_is_seen(by: str) -> None:
    """Between an exit and the next run, in the middle of the guest's access: by each of the ways to write."""
    with Guest(CALLER) as guest:
        guest.memory.write(FUNCTION, function(0))
        guest.set(rdi=FUNCTION)
        write = {
            "memory": guest.memory.write,
            "dma": guest.machine.dma(Patch(guest)).write,
            "store": lambda at, data: guest.vcpu.store(at, len(data), int.from_bytes(data, "little")),
        }[by]
        while isinstance(exit := guest.vcpu.run(), PioExit):
            write(FUNCTION, function(exit.data))
        assert exit == HltExit()
        assert guest.vcpu.registers.rcx == 5050


def test_what_is_written_while_the_guest_rests_is_seen() -> None:
    """Another program over the one that ran to its end; then all of RAM cleared, and a third."""
    with Guest(b"\xb8\1\0\0\0\xf4") as guest:
        assert guest.finish().rax == 1
        guest.memory.store(CODE + 1, 4, 2)
        guest.set(rip=CODE)
        assert guest.finish().rax == 2
        guest.memory.clear()
        guest.memory.write(CODE, b"\xb9\3\0\0\0\xf4")
        guest.start()
        r = guest.finish()
        assert (r.rax, r.rcx) == (0, 3)


@pytest.mark.parametrize("interrupts", [False, True])
def test_what_another_thread_writes_is_seen_by_a_guest_that_runs(interrupts: bool) -> None:
    """A guest that spins on a function's result sees each of 100 new values, with interrupts on and off."""
    program = code64("""
        ff d7                 ; call rdi
        3b 04 25 00 00 03 00  ; cmp eax, [0x30000]
        74 f5                 ; je .-9
        89 04 25 00 00 03 00  ; mov [0x30000], eax
        83 f8 64              ; cmp eax, 100
        75 e7                 ; jne .-23
        fa                    ; cli
        f4                    ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(0x40, b"\x48\xcf", HANDLERS)
        controller = Vectors(guest.machine)
        guest.memory.write(FUNCTION, function(0))
        guest.set(rdi=FUNCTION, rflags=0x202 if interrupts else 2)
        given_up = threading.Event()

        def patch() -> None:
            for value in range(1, 101):
                guest.memory.store(FUNCTION + 1, 4, value)
                if interrupts:
                    controller.request(0x40)
                while guest.memory.load(DATA, 4) != value and not given_up.is_set():
                    time.sleep(0.0001)

        thread = threading.Thread(target=patch)
        thread.start()
        try:
            guest.finish()
        finally:
            given_up.set()
            thread.join()
        assert guest.word(size=4) == 100


def test_stopping_the_guest_while_it_patches_itself_changes_nothing() -> None:
    """Kicks at any moment of 20,000 patches: all of them are seen."""
    program = code64("""
        bb 20 4e 00 00  ; mov ebx, 20000
        89 1e           ; mov [rsi], ebx
        ff d7           ; call rdi
        39 d8           ; cmp eax, ebx
        75 0a           ; jne .+0x0c
        48 83 f6 40     ; xor rsi, 0x40
        48 83 f7 40     ; xor rdi, 0x40
        ff cb           ; dec ebx
        75 ec           ; jnz .-18
        f4              ; hlt
    """)
    with Guest(program) as guest:
        for offset in (0, 0x40):
            guest.memory.write(FUNCTION + offset, function(0))
        guest.set(rdi=FUNCTION, rsi=guest.map(0, FUNCTION, PRESENT | WRITABLE | NX) + 1)
        done = threading.Event()

        def kicks() -> None:
            while not done.wait(0.0003):
                guest.vcpu.kick()

        thread = threading.Thread(target=kicks)
        thread.start()
        while isinstance(exit := guest.vcpu.run(), KickExit):
            pass
        done.set()
        thread.join()
        assert exit == HltExit()
        assert guest.vcpu.registers.rbx == 0
