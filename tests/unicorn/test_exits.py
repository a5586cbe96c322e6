"""What `run` hands back from a guest on the Unicorn engine, and that the machine goes on from it.

On this engine a 64-bit access to a device is two 32-bit ones, the lower address first, and an
unaligned one is aligned pieces (docs/engines.md, "Limits").
"""

from __future__ import annotations

import itertools

import pytest
from rig import DATA, MMIO, RAM, Guest, answered, code64

from iobus.bus import Device, DeviceError
from iobus.exits import (
    EngineError,
    Exit,
    HltExit,
    MmioExit,
    PioExit,
)
from iobus.machine import UnclaimedAccess

pytestmark = pytest.mark.usefixtures("way")


# Unclaimed accesses.


def test_an_unclaimed_mmio_read_is_answered_by_the_caller() -> None:
    """Each size comes as an exit with its address, and the caller's data ends in the register, no more of it."""
    program = code64("""
        48 c7 c0 ff ff ff ff  ; mov rax, -1
        8a 03                 ; mov al, [rbx]
        48 c7 c1 ff ff ff ff  ; mov rcx, -1
        66 8b 4b 02           ; mov cx, [rbx + 2]
        48 c7 c2 ff ff ff ff  ; mov rdx, -1
        8b 53 04              ; mov edx, [rbx + 4]
        48 8b 73 08           ; mov rsi, [rbx + 8]
        f4                    ; hlt
    """)
    with Guest(program) as guest:
        exits = answered(guest, 0x11, 0x2222, 0x33333333, 0x44444444, 0x55555555)
        assert exits == [
            MmioExit(MMIO, 1, False, 0x11),
            MmioExit(MMIO + 2, 2, False, 0x2222),
            MmioExit(MMIO + 4, 4, False, 0x33333333),
            MmioExit(MMIO + 8, 4, False, 0x44444444),
            MmioExit(MMIO + 12, 4, False, 0x55555555),
            HltExit(),
        ]
        r = guest.vcpu.registers
        assert (r.rax, r.rcx) == (0xFFFFFFFFFFFFFF11, 0xFFFFFFFFFFFF2222)
        assert (r.rdx, r.rsi) == (0x33333333, 0x5555555544444444)


def test_an_unclaimed_mmio_write_brings_its_data() -> None:
    """The exit of a write holds the value, cut to its size; 8 bytes come in two halves."""
    program = code64("""
        48 b8 88 77 66 55 44 33 22 11  ; mov rax, 0x1122334455667788
        88 03                          ; mov [rbx], al
        66 89 43 02                    ; mov [rbx + 2], ax
        89 43 04                       ; mov [rbx + 4], eax
        48 89 43 08                    ; mov [rbx + 8], rax
        f4                             ; hlt
    """)
    with Guest(program) as guest:
        assert answered(guest) == [
            MmioExit(MMIO, 1, True, 0x88),
            MmioExit(MMIO + 2, 2, True, 0x7788),
            MmioExit(MMIO + 4, 4, True, 0x55667788),
            MmioExit(MMIO + 8, 4, True, 0x55667788),
            MmioExit(MMIO + 12, 4, True, 0x11223344),
            HltExit(),
        ]


def test_a_device_asked_again_may_take_the_lock_and_others_have_it_between() -> None:
    """The second access is a remembered one, on the short way: the guest's thread has the lock, and leaves it free."""
    program = code64("""
        8b 03     ; mov eax, [rbx]
        8b 03     ; mov eax, [rbx]
        89 43 04  ; mov [rbx + 4], eax
        89 43 04  ; mov [rbx + 4], eax
        f4        ; hlt
    """)
    with Guest(program) as guest:
        lock = guest.machine.lock
        held = []

        class Locking(Device):
            def read(self, offset: int, size: int) -> int:
                with lock:
                    held.append(lock.held())
                return 7

            def write(self, offset: int, size: int, value: int) -> None:
                with lock:
                    held.append(lock.held())

        guest.machine.mmio.attach(Locking(), MMIO, 16)
        assert guest.vcpu.run() == HltExit()
        assert held == [True] * 4
        with lock:  # from this thread: nobody has it
            assert guest.vcpu.registers.rax == 7


@pytest.mark.parametrize("bad", [-1, 1 << 32, None, "1", 1.0])
def test_a_bad_answer_of_a_device_that_answered_before_stops_the_guest(bad: object) -> None:
    """What it returns is looked at each time; the guest reads all ones and can go on, to where the device declines."""
    program = code64("""
        8b 03  ; mov eax, [rbx]
        8b 0b  ; mov ecx, [rbx]
        eb 00  ; jmp on, to a block of its own
        8b 13  ; mov edx, [rbx]
        f4     ; hlt
    """)
    with Guest(program) as guest:
        answers = iter([7, bad, NotImplemented])

        class Moody(Device):
            def read(self, offset: int, size: int) -> int:
                return next(answers)  # type: ignore[return-value]

        guest.machine.mmio.attach(Moody(), MMIO, 16)
        with pytest.raises(DeviceError, match="read returned"):
            guest.vcpu.run()
        assert guest.vcpu.run() == MmioExit(MMIO, 4, False, 0)
        assert guest.vcpu.run() == HltExit()
        assert guest.vcpu.registers.rax == 7 and guest.vcpu.registers.rcx == 0xFFFFFFFF


def test_an_answer_wider_than_the_access_is_cut() -> None:
    """A caller that leaves too much in `data` changes no bits beyond the access."""
    program = code64("""
        b8 ff ff ff ff  ; mov eax, -1
        e4 10           ; in al, 0x10
        0f b6 0b        ; movzx ecx, byte ptr [rbx]
        f4              ; hlt
    """)
    with Guest(program) as guest:
        answered(guest, 0x1234, -2)
        r = guest.vcpu.registers
        assert (r.rax, r.rcx) == (0xFFFFFF34, 0xFE)


def test_unclaimed_ports_read_and_write() -> None:
    """IN and OUT of all sizes, by immediate and by DX, are exits of their own kind."""
    program = code64("""
        e4 10           ; in al, 0x10
        ba fe ff 00 00  ; mov edx, 0xfffe
        66 ed           ; in ax, dx
        89 c1           ; mov ecx, eax
        ba 34 12 00 00  ; mov edx, 0x1234
        ed              ; in eax, dx
        e6 20           ; out 0x20, al
        66 ef           ; out dx, ax
        ef              ; out dx, eax
        f4              ; hlt
    """)
    with Guest(program) as guest:
        assert answered(guest, 0xAB, 0xCDEF, 0x89ABCDEF) == [
            PioExit(0x10, 1, False, 0xAB),
            PioExit(0xFFFE, 2, False, 0xCDEF),
            PioExit(0x1234, 4, False, 0x89ABCDEF),
            PioExit(0x20, 1, True, 0xEF),
            PioExit(0x1234, 2, True, 0xCDEF),
            PioExit(0x1234, 4, True, 0x89ABCDEF),
            HltExit(),
        ]
        r = guest.vcpu.registers
        assert (r.rcx, r.rax) == (0xCDEF, 0x89ABCDEF)


def test_string_io_comes_element_by_element() -> None:
    """REP INSB and, backwards, REP OUTSW: one exit an element, in the order of the addresses."""
    program = code64("""
        ba 60 00 00 00  ; mov edx, 0x60
        b9 03 00 00 00  ; mov ecx, 3
        f3 6c           ; rep insb
        48 8d 77 ff     ; lea rsi, [rdi - 1]
        fd              ; std
        b9 02 00 00 00  ; mov ecx, 2
        66 f3 6f        ; rep outsw
        f4              ; hlt
    """)
    with Guest(program) as guest:
        exits = answered(guest, 1, 2, 3)
        assert exits[:3] == [PioExit(0x60, 1, False, value) for value in (1, 2, 3)]
        assert exits[3:] == [PioExit(0x60, 2, True, 0x0003), PioExit(0x60, 2, True, 0x0201), HltExit()]
        assert guest.memory.read(DATA, 4) == b"\1\2\3\0"
        assert guest.vcpu.registers.rcx == 0


def test_string_moves_between_ram_and_devices() -> None:
    """REP MOVSD from a device to RAM, then MOVSB from device to device: read, then write, for each element."""
    program = code64("""
        48 89 de        ; mov rsi, rbx
        b9 02 00 00 00  ; mov ecx, 2
        f3 a5           ; rep movsd
        48 89 f7        ; mov rdi, rsi
        a4              ; movsb
        f4              ; hlt
    """)
    with Guest(program) as guest:
        assert answered(guest, 0x11111111, 0x22222222, 0x33) == [
            MmioExit(MMIO, 4, False, 0x11111111),
            MmioExit(MMIO + 4, 4, False, 0x22222222),
            MmioExit(MMIO + 8, 1, False, 0x33),
            MmioExit(MMIO + 8, 1, True, 0x33),
            HltExit(),
        ]
        assert guest.word() == 0x2222222211111111


def test_a_read_modify_write_reads_once_and_writes_once() -> None:
    """ADD, XCHG and a locked XADD on a device: one read and one write each, the exit between them included."""
    program = code64("""
        b8 05 00 00 00  ; mov eax, 5
        01 03           ; add [rbx], eax
        87 03           ; xchg [rbx], eax
        b9 01 00 00 00  ; mov ecx, 1
        f0 0f c1 0b     ; lock xadd [rbx], ecx
        f4              ; hlt
    """)
    with Guest(program) as guest:
        assert answered(guest, 10, 20, 30) == [
            MmioExit(MMIO, 4, False, 10),
            MmioExit(MMIO, 4, True, 15),
            MmioExit(MMIO, 4, False, 20),
            MmioExit(MMIO, 4, True, 5),
            MmioExit(MMIO, 4, False, 30),
            MmioExit(MMIO, 4, True, 31),
            HltExit(),
        ]
        r = guest.vcpu.registers
        assert (r.rax, r.rcx) == (20, 30)


def covered(exits: list[Exit]) -> bytes:
    """The bytes that write exits hold, in the order of their addresses, which must be without a gap."""
    pieces = sorted((exit.address, exit.size, exit.data) for exit in exits if isinstance(exit, MmioExit))
    for (address, size, _), (following, _, _) in itertools.pairwise(pieces):
        assert address + size == following
        assert address // 4096 == (address + size - 1) // 4096
    return b"".join(data.to_bytes(size, "little") for _, size, data in pieces)


def test_an_access_across_two_pages_is_an_exit_for_each() -> None:
    """Both exits of one instruction are answered, and no exit crosses the page."""
    program = code64("""
        c7 83 fe 0f 00 00 11 22 33 44  ; mov dword ptr [rbx + 0xffe], 0x44332211
        f4                             ; hlt
    """)
    with Guest(program) as guest:
        exits = answered(guest)
        assert len(exits) > 2
        assert covered(exits) == b"\x11\x22\x33\x44"


def test_a_read_across_two_pages_is_put_together() -> None:
    """The caller serves each part from its own memory; the register has all of it."""
    program = code64("""
        8b 83 fe 0f 00 00  ; mov eax, [rbx + 0xffe]
        f4                 ; hlt
    """)
    content = bytes(range(256)) * 32
    with Guest(program) as guest:
        while isinstance(exit := guest.vcpu.run(), MmioExit):
            at = exit.address - MMIO
            assert at // 4096 == (at + exit.size - 1) // 4096
            exit.data = int.from_bytes(content[at : at + exit.size], "little")
        assert guest.vcpu.registers.rax == int.from_bytes(content[0xFFE:0x1002], "little")


def test_an_access_half_in_ram_exits_for_the_other_half() -> None:
    """The end of RAM in the middle of an access: RAM gives its part, the caller the rest."""
    program = code64("""
        8b 04 25 fe ff 1f 00  ; mov eax, [0x1ffffe]
        89 0c 25 fe ff 1f 00  ; mov [0x1ffffe], ecx
        f4                    ; hlt
    """)
    with Guest(program) as guest:
        guest.memory.store(RAM - 2, 2, 0x2211)
        guest.set(rcx=0x44332211)
        written = bytearray()
        while isinstance(exit := guest.vcpu.run(), MmioExit):
            assert exit.address >= RAM
            if exit.is_write:
                written[exit.address - RAM :] = exit.data.to_bytes(exit.size, "little")
            else:
                exit.data = int.from_bytes(b"\x33\x44\0\0"[exit.address - RAM :][: exit.size], "little")
        assert guest.vcpu.registers.rax == 0x44332211
        assert bytes(written[:2]) == b"\x33\x44"
        assert guest.memory.load(RAM - 2, 2) == 0x2211


def test_a_machine_answers_with_ones_and_counts() -> None:
    """`Machine.run`: a read is all ones of its size, a write is dropped, both are counted by address."""
    program = code64("""
        0f b6 03  ; movzx eax, byte ptr [rbx]
        8b 4b 04  ; mov ecx, [rbx + 4]
        88 03     ; mov [rbx], al
        88 03     ; mov [rbx], al
        31 d2     ; xor edx, edx
        66 ed     ; in ax, dx
        f4        ; hlt
    """)
    with Guest(program) as guest:
        r = guest.finish()
        assert (r.rax, r.rcx) == (0xFFFF, 0xFFFFFFFF)
        assert guest.machine.unclaimed == {
            UnclaimedAccess("mmio", MMIO, False): 1,
            UnclaimedAccess("mmio", MMIO + 4, False): 1,
            UnclaimedAccess("mmio", MMIO, True): 2,
            UnclaimedAccess("pio", 0, False): 1,
        }


def test_a_machine_can_stop_at_unclaimed_accesses() -> None:
    """`unclaimed="stop"` hands them out; a later run with the default answers the next itself."""
    program = code64("""
        e4 10  ; in al, 0x10
        e4 11  ; in al, 0x11
        f4     ; hlt
    """)
    with Guest(program) as guest:
        assert guest.machine.run(timeout=20, unclaimed="stop") == PioExit(0x10, 1, False)
        guest.finish()
        assert guest.machine.unclaimed == {UnclaimedAccess("pio", 0x11, False): 1}


def test_registers_can_be_read_but_not_set_within_an_access() -> None:
    """While an exit waits for its answer the registers are those before the instruction."""
    program = code64("""
        b8 01 00 00 00  ; mov eax, 1
        e4 10           ; in al, 0x10
        f4              ; hlt
    """)
    with Guest(program) as guest:
        assert isinstance(guest.vcpu.run(), PioExit)
        assert guest.vcpu.registers.rax == 1
        with pytest.raises(EngineError, match="in the middle of an access"):
            guest.set(rax=2)
