"""pc/host_interface.py, table_loader.py and bios_data.py: what guests without a real BIOS find in the PC."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.exits import DebugExit, Exit, PowerOffExit
from iobus.pc import acpi, bios_data, host_interface, layout, table_loader
from iobus.pc.pc import Pc


class Host:
    """A PC without a CPU, with all of the interface."""

    def __init__(self, memory: int = 64 << 20, cpus: int = 1) -> None:
        self.log: list[bytes] = []
        self.pc = Pc(memory=memory, cpus=cpus)
        self.stops: list[Exit] = []
        self.pc.machine.stop = self.stops.append  # type: ignore[method-assign]
        host_interface.attach(self.pc, self.log.append)
        self.ports, self.mmio = self.pc.machine.pio, self.pc.machine.mmio

    def item(self, key: int, count: int) -> bytes:
        self.ports.write(0x510, 2, key)
        return bytes(self.ports.read(0x511, 1) for _ in range(count))

    def file(self, name: str) -> bytes:
        (count,) = struct.unpack(">I", self.item(0x19, 4))
        entries = [struct.unpack(">IHH56s", bytes(self.ports.read(0x511, 1) for _ in range(64))) for _ in range(count)]
        size, key = next((size, key) for size, key, _, text in entries if text.rstrip(b"\0") == name.encode())
        return self.item(key, size)

    def cmos(self, index: int) -> int:
        self.ports.write(0x70, 1, index)
        value = self.ports.read(0x71, 1)
        assert isinstance(value, int)
        return value


@pytest.mark.parametrize("cpus", [1, 4])
def test_the_items_that_kvms_unit_tests_ask_for(cpus: int) -> None:
    """facts of their interface: key 5 the CPUs, key 3 the RAM, key 0x11 eight bytes of 0."""
    host = Host(memory=256 << 20, cpus=cpus)
    assert host.item(5, 2) == host.item(0xF, 2) == cpus.to_bytes(2, "little")
    assert host.item(3, 8) == (256 << 20).to_bytes(8, "little")
    assert host.item(0x11, 8) == bytes(8)


def test_the_ports_end_the_run() -> None:
    """outl(code, 0xF4), and the bytes of "Shutdown" to 0x8900."""
    host = Host()
    host.ports.write(0xF4, 4, 5)
    for byte in b"Shutdown":
        host.ports.write(0x8900, 1, byte)
    assert host.stops == [DebugExit(5), PowerOffExit()]


def test_the_test_devices_lines_reach_the_ioapic_and_the_8259() -> None:
    """Line 14 is pin 14 and input 14; line 0, the timer's, pin 2; line 2 pin 2 and no input; 23 a pin only."""
    host = Host()
    lapic = host.pc.machine.vcpus[0].mmio
    for port, values in ((0x20, (0x11, 0x08, 4, 1, 0xFF)), (0xA0, (0x11, 0x70, 2, 1, 0xFF))):
        for index, value in enumerate(values):  # ICW1-ICW4, and OCW1: all masked
            host.ports.write(port + (index > 0), 1, value)
        host.ports.write(port, 1, 0x0A)  # OCW3: IRR is read
    lapic.write(0xFEE000F0, 4, 0x1FF)
    for pin in range(24):
        for register, value in ((0x11 + 2 * pin, 0), (0x10 + 2 * pin, 0x30 + pin)):
            host.mmio.write(0xFEC00000, 4, register)
            host.mmio.write(0xFEC00010, 4, value)
    requested = 0
    for number, pin, inputs in ((14, 14, 1 << 14), (0, 2, 1), (2, 2, 0), (23, 23, 0)):
        host.ports.write(0x2000 + number, 1, 1)
        irr = sum(lapic.read(0xFEE00200 + 16 * word, 4) << 32 * word for word in range(8))
        assert irr == 1 << 0x30 + pin
        irr = (host.ports.read(0x20, 1) | host.ports.read(0xA0, 1) << 8) & ~4
        requested |= inputs  # none is served
        assert irr & inputs == inputs and not irr & ~requested
        host.ports.write(0x2000 + number, 1, 0)
        assert host.pc.lapics[0].acknowledge() == 0x30 + pin
        lapic.write(0xFEE000B0, 4, 0)


def test_the_test_devices_memory_and_ports_and_the_debug_console() -> None:
    """Where guests expect them."""
    host = Host()
    host.mmio.write(0xFF00FFF8, 8, 0x1122334455667788)
    assert host.mmio.read(0xFF00FFF8, 8) == 0x1122334455667788
    host.ports.write(0xE0, 4, 0x12345678)
    assert host.ports.read(0xE8, 4) == 0x12345678
    host.ports.write(0x402, 1, ord("!"))
    assert host.log == [b"!"] and host.ports.read(0x402, 1) == 0xE9


@pytest.mark.parametrize("gibibytes", [1, 3, 5])
def test_firmware_is_told_of_all_ram(gibibytes: int) -> None:
    """etc/e820 has RAM below and above 4 GiB; the CMOS has the same in 64 KiB units, and KiB up to 64 MiB."""
    size = gibibytes << 30
    host = Host(memory=size)
    low = min(size, 3 << 30)
    entries = list(struct.iter_unpack("<QQI", host.file("etc/e820")))
    assert entries == [(0, low, 1), (1 << 32, size - low, 1)][: 2 if size > low else 1]
    assert (host.cmos(0x34) | host.cmos(0x35) << 8) * 65536 + (16 << 20) == low
    assert sum(host.cmos(0x5B + index) << 8 * index for index in range(3)) * 65536 == size - low
    assert host.cmos(0x17) | host.cmos(0x18) << 8 == host.cmos(0x30) | host.cmos(0x31) << 8 == 0xFFFF
    assert host.cmos(0x5F) == 0


def test_less_memory_in_the_cmos() -> None:
    """KiB above 1 MiB; nothing above 16 MiB; the number of CPUs less one."""
    told = bios_data.cmos(8 << 20, 3)
    assert told[0x17] | told[0x18] << 8 == told[0x30] | told[0x31] << 8 == 7 * 1024
    assert told[0x34] == told[0x35] == 0 and told[0x5F] == 2
    assert all(0 <= value < 256 for value in told.values())


def test_the_bios_data_area_is_in_place_after_power_on_and_reset() -> None:
    """COM1's port, the EBDA's segment, the equipment word with one serial port, KiB of low memory."""
    pc = Pc(memory=1 << 20)
    for _ in range(2):
        memory = pc.machine.memory
        assert memory.load(0x400, 2) == 0x3F8
        assert memory.load(0x40E, 2) << 4 == layout.EBDA
        assert memory.load(0x410, 2) >> 9 & 7 == 1
        assert memory.load(0x413, 2) * 1024 == layout.EBDA
        assert memory.load(layout.EBDA, 1) * 1024 == 0xA0000 - layout.EBDA
        memory.write(0, bytes(0x500))
        pc.reset()


def test_interrupt_vectors_lead_to_code() -> None:
    """Each to an IRET at F000:FF53, or, for the BIOS's services, to code that sets the caller's carry flag."""
    memory = Pc(memory=1 << 20).machine.memory
    for vector in range(256):
        offset, segment = struct.unpack("<HH", memory.read(4 * vector, 4))
        code = memory.read((segment << 4) + offset, 9)
        if 0x10 <= vector <= 0x1A:
            # push bp; mov bp, sp; or byte ptr [bp + 6], 1; pop bp; iret
            assert code == b"\x55\x89\xe5\x80\x4e\x06\x01\x5d\xcf"
        else:
            assert (segment, offset, code[0]) == (0xF000, 0xFF53, 0xCF)


# The table loader.


def link(files: dict[str, bytes], places: dict[str, int]) -> dict[str, bytearray]:
    """Do as firmware does: each command of the loader's file, with files at `places`."""
    loaded: dict[str, bytearray] = {}
    for at in range(0, len(files["etc/table-loader"]), 128):
        entry = files["etc/table-loader"][at : at + 128]
        command = int.from_bytes(entry[:4], "little")
        names = [entry[start : start + 56].split(b"\0")[0].decode(errors="replace") for start in (4, 60)]
        if command == 1:
            alignment, zone = struct.unpack_from("<IB", entry, 60)
            assert places[names[0]] % alignment == 0 and zone == (2 if names[0].endswith("rsdp") else 1)
            loaded[names[0]] = bytearray(files[names[0]])
        elif command == 2:
            offset, size = struct.unpack_from("<IB", entry, 116)
            data = loaded[names[0]]
            value = int.from_bytes(data[offset : offset + size], "little") + places[names[1]]
            data[offset : offset + size] = value.to_bytes(size, "little")
        else:
            assert command == 3
            result, start, length = struct.unpack_from("<III", entry, 60)
            data = loaded[names[0]]
            assert start + length <= len(data)
            data[result] = data[result] - sum(data[start : start + length]) & 0xFF
    return loaded


@settings(max_examples=40)
@given(st.integers(1, 255), st.integers(1, 0xBFFF), st.integers(0, 0xFFF))
def test_tables_placed_by_firmware_are_those_of_a_pc(cpus: int, page: int, paragraph: int) -> None:
    """Wherever firmware puts them: pointers lead to the tables, checksums are right, the contents are the same."""
    files = table_loader.files(cpus)
    tables_at, rsdp_at = page << 16, 0xF0000 + (paragraph << 4)
    loaded = link(files, {"etc/acpi/tables": tables_at, "etc/acpi/rsdp": rsdp_at})
    image, rsdp = loaded["etc/acpi/tables"], loaded["etc/acpi/rsdp"]
    wanted = acpi.tables(cpus)

    def table(address: int, memory: bytes, base: int) -> bytes:
        start = address - base
        return bytes(memory[start : start + int.from_bytes(memory[start + 4 : start + 8], "little")])

    assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
    pairs = []
    for at, size in ((16, 4), (24, 8)):
        ours = table(int.from_bytes(rsdp[at : at + size], "little"), image, tables_at)
        theirs = table(int.from_bytes(wanted[at : at + size], "little"), wanted, layout.ACPI_TABLES)
        assert len(ours) == len(theirs) and sum(ours) & 0xFF == 0
        for entry in range(36, len(ours), size):
            pairs.append([int.from_bytes(root[entry : entry + size], "little") for root in (ours, theirs)])
    for ours_at, theirs_at in pairs:
        ours, theirs = table(ours_at, image, tables_at), table(theirs_at, wanted, layout.ACPI_TABLES)
        assert ours[:4] == theirs[:4] and len(ours) == len(theirs) and sum(ours) & 0xFF == 0
        if ours[:4] != b"FACP":
            assert ours == theirs
            continue
        assert ours[44:140] == theirs[44:140] and ours[148:] == theirs[148:]
        facs, dsdt = struct.unpack_from("<II", ours, 36)
        assert image[facs - tables_at :][:4] == b"FACS" and facs % 64 == 0
        assert struct.unpack_from("<Q", ours, 140) == (dsdt,)
        (their_dsdt,) = struct.unpack_from("<I", theirs, 40)
        assert table(dsdt, image, tables_at) == table(their_dsdt, wanted, layout.ACPI_TABLES)
