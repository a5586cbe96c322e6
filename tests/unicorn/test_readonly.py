"""Read-only memory on the Unicorn engine: ROM, and RAM that is protected and released while the guest runs."""

import pytest
from rig import CODE, DATA, Guest, code64

from iobus.bus import Device
from iobus.exits import MmioExit

ROM = 0x400000
"""Above the guest's RAM, and mapped."""


class Witness(Device):
    """Writes down the writes it gets; a write to its last byte releases or protects the slot."""

    length = 0x2000

    def __init__(self, guest: Guest) -> None:
        self.memory = guest.memory
        self.slot = guest.memory.add(ROM, 0x2000, readonly=True)
        self.writes: list[tuple[int, int, int]] = []

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))

    def port(self) -> Device:
        switch = Device()
        switch.read = lambda offset, size: 0  # type: ignore[method-assign]
        switch.write = lambda offset, size, value: self.memory.protect(self.slot, bool(value))  # type: ignore[method-assign]
        return switch


def test_a_rom_is_read_and_run_and_writes_to_it_go_to_the_bus() -> None:
    """Values, sizes and addresses of the writes are exact; the contents stay."""
    with Guest(code64("""
        bb 00 00 40 00              ; mov ebx, 0x400000
        c6 03 11                    ; mov byte ptr [rbx], 0x11
        c7 43 08 78 56 34 12        ; mov dword ptr [rbx + 8], 0x12345678
        66 c7 43 0e cd ab           ; mov word ptr [rbx + 14], 0xabcd
        ff d3                       ; call rbx
        f4                          ; hlt
    """)) as guest:  # fmt: skip
        witness = Witness(guest)
        guest.machine.mmio.attach(witness, ROM, 0x2000)
        rom = code64("8b 04 25 08 00 40 00 ; mov eax, [0x400008]\nc3 ; ret").ljust(8, b"\x90") + b"\x0d\xf0\xad\xde"
        guest.memory.program(ROM, rom)
        end = guest.finish()
        assert end.rax == 0xDEADF00D
        assert witness.writes == [(0, 1, 0x11), (8, 4, 0x12345678), (14, 2, 0xABCD)]
        assert guest.memory.read(ROM, len(rom)) == rom


def test_a_rom_is_protected_wherever_it_is_mapped() -> None:
    """The guest's virtual address does not count; nor does RAM get slow or lost writes because of it."""
    with Guest(code64("""
        bb 00 00 00 40              ; mov ebx, 0x40000000
        c7 43 04 78 56 34 12        ; mov dword ptr [rbx + 4], 0x12345678
        c7 83 00 10 00 00 01 00 00 00 ; mov dword ptr [rbx + 0x1000], 1
        f4                          ; hlt
    """)) as guest:  # fmt: skip
        witness = Witness(guest)
        guest.machine.mmio.attach(witness, ROM, 0x2000)
        guest.map(0, ROM + 0x1000)
        guest.map(1, DATA)
        guest.finish()
        assert witness.writes == [(0x1004, 4, 0x12345678)] and guest.word(0, 4) == 1


def test_a_write_that_nobody_takes_is_an_exit() -> None:
    """As any access that no device claims."""
    with Guest(code64("c6 04 25 05 00 40 00 2a ; mov byte ptr [0x400005], 0x2a\nf4 ; hlt")) as guest:
        guest.memory.add(ROM, 0x1000, readonly=True)
        exit = guest.machine.run(timeout=20, unclaimed="stop")
        assert isinstance(exit, MmioExit)
        assert (exit.address, exit.size, exit.is_write, exit.data) == (ROM + 5, 1, True, 0x2A)
        guest.finish()
        assert guest.memory.load(ROM + 5, 1) == 0


def test_ram_that_becomes_read_only_while_the_guest_runs() -> None:
    """It was RAM, and the store was translated and run as one to RAM, before a device protects it."""
    with Guest(code64("""
        bb 00 00 40 00              ; mov ebx, 0x400000
        66 ba 10 00                 ; mov dx, 0x10
        b0 01                       ; mov al, 1
        c6 03 11                    ; mov byte ptr [rbx], 0x11
        ee                          ; out dx, al: protected
        c6 43 01 22                 ; mov byte ptr [rbx + 1], 0x22
        f4                          ; hlt
    """)) as guest:  # fmt: skip
        witness = Witness(guest)
        guest.memory.protect(witness.slot, False)
        guest.machine.mmio.attach(witness, ROM, 0x2000)
        guest.machine.pio.attach(witness.port(), 0x10, 1)
        guest.finish()
        assert witness.writes == [(1, 1, 0x22)] and guest.memory.read(ROM, 2) == b"\x11\x00"


@pytest.mark.parametrize("warm", [False, True])
def test_protection_changes_with_the_very_next_instruction(warm: bool) -> None:
    """In one block of code: a store before, an OUT that releases, a store, an OUT that protects, a store."""
    with Guest(code64("""
        bb 00 00 40 00              ; mov ebx, 0x400000
        66 ba 10 00                 ; mov dx, 0x10
        30 c0                       ; xor al, al
        c6 03 11                    ; mov byte ptr [rbx], 0x11
        ee                          ; out dx, al: released
        c6 43 01 22                 ; mov byte ptr [rbx + 1], 0x22
        fe c0                       ; inc al
        ee                          ; out dx, al: protected
        c6 43 02 33                 ; mov byte ptr [rbx + 2], 0x33
        f4                          ; hlt
    """)) as guest:  # fmt: skip
        witness = Witness(guest)
        guest.machine.mmio.attach(witness, ROM, 0x2000)
        guest.machine.pio.attach(witness.port(), 0x10, 1)
        for _ in range(2 if warm else 1):
            witness.writes.clear()
            guest.set(rip=CODE)
            guest.memory.program(ROM, bytes(3))
            guest.finish()
            assert witness.writes == [(0, 1, 0x11), (2, 1, 0x33)]
            assert guest.memory.read(ROM, 3) == b"\x00\x22\x00"


def test_code_written_while_released_is_run_when_protected() -> None:
    """As firmware does it that copies itself into shadow RAM: no stale translation is run."""
    with Guest(code64("""
        bb 00 00 40 00              ; mov ebx, 0x400000
        ff d3                       ; call rbx
        89 04 25 00 00 03 00        ; mov [0x30000], eax
        66 ba 10 00                 ; mov dx, 0x10
        30 c0                       ; xor al, al
        ee                          ; out dx, al: released
        c6 43 01 02                 ; mov byte ptr [rbx + 1], 2
        fe c0                       ; inc al
        ee                          ; out dx, al: protected
        ff d3                       ; call rbx
        89 04 25 04 00 03 00        ; mov [0x30004], eax
        f4                          ; hlt
    """)) as guest:  # fmt: skip
        witness = Witness(guest)
        guest.machine.mmio.attach(witness, ROM, 0x2000)
        guest.machine.pio.attach(witness.port(), 0x10, 1)
        guest.memory.program(ROM, b"\xb8\x01\x00\x00\x00\xc3")  # mov eax, 1; ret
        guest.finish()
        assert (guest.memory.load(DATA, 4), guest.memory.load(DATA + 4, 4)) == (1, 2)
        assert witness.writes == []


def test_page_tables_in_a_rom_are_walked_and_not_marked() -> None:
    """The writes of accessed and dirty bits are dropped there: by the CPU, and by a walk of ours."""
    with Guest(code64("c6 04 25 00 00 03 00 55 ; mov byte ptr [0x30000], 0x55\nf4 ; hlt")) as guest:
        tables = guest.memory.read(0x1000, 0x6000)
        guest.memory.add(ROM, 0x6000, readonly=True)
        for entry in range(0, len(tables), 8):
            value = int.from_bytes(tables[entry : entry + 8], "little")
            if value & 1 and not value & 0x80 and value >> 12 in range(1, 7):  # points to a table: to the copy
                tables = tables[:entry] + (value + ROM - 0x1000).to_bytes(8, "little") + tables[entry + 8 :]
        guest.memory.program(ROM, tables)
        guest.set(cr3=ROM)
        guest.finish()
        assert guest.word(0, 1) == 0x55
        assert guest.memory.read(ROM, 0x6000) == tables
        assert guest.vcpu.translate(DATA, write=True) == DATA
        assert guest.memory.read(ROM, 0x6000) == tables
