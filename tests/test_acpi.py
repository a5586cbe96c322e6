"""The ACPI tables and the AML they are made of, held to the ACPI specification 6.5 and to ACPICA's own tools.

The tables are parsed here by the specification's offsets, from the RSDP on, as a guest finds them.
"""

from __future__ import annotations

import itertools
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.bus import Device, RegistrationError
from iobus.clock import SteppedClock
from iobus.devices.acpi_pm import S5_SLP_TYP, TMR_VAL_EXT
from iobus.devices.hpet import SHORTEST_REPEAT
from iobus.pc import acpi, aml, layout
from iobus.pc.pc import Pc

IASL = shutil.which("iasl")
needs_iasl = pytest.mark.skipif(IASL is None, reason="iasl is not installed (Debian: acpica-tools)")

MMIO_DEVICE = acpi.AcpiDevice(
    "DEV0", "LNRO0005", (aml.memory32_fixed(0xC0000000, 0x200), aml.interrupt(20, level=True, shared=True)), uid=300
)


class Gas(NamedTuple):
    """A Generic Address Structure, 5.2.3.2."""

    space: int
    width: int
    offset: int
    access: int
    address: int


def gas(fadt: bytes, at: int) -> Gas:
    return Gas(*struct.unpack_from("<BBBBQ", fadt, at))


def u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def u64(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<Q", data, at)[0])


def find(image: bytes, base: int) -> dict[str, tuple[int, bytes]]:
    """Every table by its signature, as (address, bytes), found from the RSDP at `base`."""

    def at(address: int, signature: str) -> tuple[int, bytes]:
        start = address - base
        length = u32(image, start + 4)
        assert start >= 0 and start + length <= len(image)
        assert image[start : start + 4] == signature.encode()
        return address, image[start : start + length]

    found = {"RSDP": (base, image[:36])}
    found["XSDT"] = at(u64(image, 24), "XSDT")
    found["RSDT"] = at(u32(image, 16), "RSDT")
    xsdt = [u64(found["XSDT"][1], i) for i in range(36, len(found["XSDT"][1]), 8)]
    rsdt = [u32(found["RSDT"][1], i) for i in range(36, len(found["RSDT"][1]), 4)]
    assert xsdt == rsdt
    for address in xsdt:
        signature = image[address - base : address - base + 4].decode()
        found[signature] = at(address, signature)
    fadt = found["FACP"][1]
    found["FACS"] = at(u32(fadt, 36), "FACS")
    found["DSDT"] = at(u64(fadt, 140), "DSDT")
    return found


def madt_entries(madt: bytes) -> list[bytes]:
    """The interrupt controller structures, 5.2.12: a type byte, a length byte, the rest."""
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert at == len(madt)
    return entries


@given(cpus=st.integers(1, 255), page=st.integers(0, 0xFC00))
@settings(max_examples=40, deadline=None)
def test_every_table_is_sound_at_every_base(cpus: int, page: int) -> None:
    """For any number of processors and any base: sums are zero, tables are apart, aligned, and below 1 MiB."""
    base = page * 16
    image = acpi.tables(cpus, base=base)
    assert base + len(image) <= 0x100000
    found = find(image, base)
    assert set(found) == {"RSDP", "RSDT", "XSDT", "FACP", "APIC", "HPET", "FACS", "DSDT"}
    rsdp = found["RSDP"][1]
    assert sum(rsdp[:20]) % 256 == 0
    assert sum(rsdp) % 256 == 0
    for signature, (address, table) in found.items():
        if signature not in ("RSDP", "FACS"):  # the FACS has no checksum
            assert sum(table) % 256 == 0, signature
        assert address % (64 if signature == "FACS" else 8) == 0, signature
    spans = sorted((address, address + len(table)) for address, table in found.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert sum(entry[0] == 0 for entry in madt_entries(found["APIC"][1])) == cpus


def test_the_default_base_is_where_guests_search() -> None:
    """The RSDP stands on a 16-byte boundary between 0xE0000 and 0xFFFFF (5.2.5.1), the tables with it."""
    image = acpi.tables(255)
    assert layout.ACPI_TABLES >= 0xE0000
    assert layout.ACPI_TABLES + len(image) <= 0x100000
    assert layout.ACPI_TABLES % 16 == 0
    assert find(image, layout.ACPI_TABLES)


def test_the_rsdp_is_revision_2() -> None:
    """5.2.5.3: signature, revision 2, length 36, reserved bytes zero."""
    rsdp = acpi.tables(1)[:36]
    assert rsdp[:8] == b"RSD PTR "
    assert rsdp[15] == 2
    assert u32(rsdp, 20) == 36
    assert rsdp[33:] == bytes(3)


def test_only_pointers_and_checksums_know_the_base() -> None:
    """The DSDT, MADT and FACS are the same bytes wherever the tables stand."""
    low, high = find(acpi.tables(3, base=0x1000), 0x1000), find(acpi.tables(3), layout.ACPI_TABLES)
    for signature in ("DSDT", "APIC", "FACS"):
        assert low[signature][1] == high[signature][1]


@pytest.fixture
def fadt() -> bytes:
    return find(acpi.tables(2), layout.ACPI_TABLES)["FACP"][1]


def test_the_fadt_has_the_length_of_its_version(fadt: bytes) -> None:
    """FADT 6.x is 276 bytes (5.2.9); guests warn of a longer one and lose fields of a shorter one."""
    assert (len(fadt), fadt[8], fadt[131]) == (276, 6, 5)


def test_the_fadt_names_its_tables_once(fadt: bytes) -> None:
    """5.2.9: of FIRMWARE_CTRL and X_FIRMWARE_CTRL one must be zero; DSDT and X_DSDT must not differ."""
    assert (u32(fadt, 36) == 0) != (u64(fadt, 132) == 0)
    assert u32(fadt, 40) == u64(fadt, 140)


# The register blocks: 32-bit address, length field or None, GAS; what Linux's drivers/acpi/acpica/tbfadt.c compares.
BLOCKS = {
    "PM1a_EVT": (56, 88, 148), "PM1b_EVT": (60, None, 160), "PM1a_CNT": (64, 89, 172), "PM1b_CNT": (68, None, 184),
    "PM2_CNT": (72, 90, 196), "PM_TMR": (76, 91, 208), "GPE0": (80, 92, 220), "GPE1": (84, 93, 232),
}  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS)
def test_the_fadt_says_the_same_in_32_and_64_bits(fadt: bytes, block: str) -> None:
    """A block's old address, its length in bytes and its GAS agree, or the block is absent in all three."""
    address, length, extended = BLOCKS[block]
    x = gas(fadt, extended)
    if u32(fadt, address) == 0:
        assert x == Gas(0, 0, 0, 0, 0)
        assert length is None or block.endswith("b_EVT") or fadt[length] == 0
    else:
        assert length is not None
        assert (x.space, x.offset, x.address) == (1, 0, u32(fadt, address))
        assert x.width == 8 * fadt[length]


def test_the_fadt_has_the_fixed_registers_at_their_ports(fadt: bytes) -> None:
    """PM1 event 4 bytes, PM1 control 2 bytes, a 32-bit timer; widths are those ACPICA calls the default."""
    assert gas(fadt, 148) == Gas(1, 32, 0, 2, 0x600)
    assert gas(fadt, 172) == Gas(1, 16, 0, 2, 0x604)
    assert gas(fadt, 208) == Gas(1, 32, 0, 3, 0x608)


def test_the_fadt_says_how_to_reset(fadt: bytes) -> None:
    """RESET_REG is one byte wide without offset (4.8.3.6): 6 to port 0xCF9."""
    assert gas(fadt, 116) == Gas(1, 8, 0, 1, 0xCF9)
    assert fadt[128] == 6


def test_the_fadt_leaves_no_way_out_of_acpi_mode(fadt: bytes) -> None:
    """SMI_CMD zero says there is no legacy mode (5.2.9), and then the values for it are zero as well."""
    assert fadt[48:56] == bytes(8)
    assert struct.unpack_from("<H", fadt, 46) == (9,)


def test_the_fadt_flags(fadt: bytes) -> None:
    """WBINVD, PROC_C1, no SLP_BUTTON, no fixed RTC wake, 32-bit timer, reset register; PWR_BUTTON is fixed."""
    assert u32(fadt, 112) == 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10
    assert TMR_VAL_EXT  # as the PM timer's own file has it
    assert struct.unpack_from("<H", fadt, 109) == (0b11,)  # LEGACY_DEVICES, 8042
    assert fadt[108] == 0x32  # CENTURY
    assert fadt[111] == 0  # reserved
    c2, c3 = struct.unpack_from("<HH", fadt, 96)
    assert c2 > 100 and c3 > 1000  # "not supported"


def test_the_facs_is_free_of_locks_and_vectors() -> None:
    """5.2.10: 64 bytes, version 2, and nothing set before the OS sets it."""
    facs = find(acpi.tables(1), layout.ACPI_TABLES)["FACS"][1]
    assert facs == b"FACS" + struct.pack("<I", 64) + bytes(24) + b"\x02" + bytes(31)


def test_the_madt_lists_the_machine() -> None:
    """5.2.12: both 8259s, a LAPIC a processor with its ID as UID, the IOAPIC, IRQ 0 and the SCI, NMI on LINT1."""
    madt = find(acpi.tables(3), layout.ACPI_TABLES)["APIC"][1]
    assert (u32(madt, 36), u32(madt, 40)) == (0xFEE00000, 1)
    assert madt_entries(madt) == [
        bytes([0, 8, 0, 0, 1, 0, 0, 0]),
        bytes([0, 8, 1, 1, 1, 0, 0, 0]),
        bytes([0, 8, 2, 2, 1, 0, 0, 0]),
        bytes([1, 12, 0, 0, 0x00, 0x00, 0xC0, 0xFE, 0, 0, 0, 0]),
        bytes([2, 10, 0, 0, 2, 0, 0, 0, 0x5, 0]),  # edge, active high
        bytes([2, 10, 0, 9, 9, 0, 0, 0, 0xD, 0]),  # level, active high
        bytes([4, 6, 0xFF, 0x5, 0, 1]),
    ]


def test_the_hpet_table_says_what_the_hpet_does() -> None:
    """IA-PC HPET 1.0a, 3.2.4: the low half of its ID, its address in memory, number 0, the shortest period."""
    table = find(acpi.tables(1), layout.ACPI_TABLES)["HPET"][1]
    pc = Pc(clock=SteppedClock())
    assert len(table) == 56 and u32(table, 36) == pc.machine.vcpus[0].mmio_path.read(0xFED00000, 4) == 0x8086A201
    assert gas(table, 40) == Gas(0, 64, 0, 0, 0xFED00000)
    assert struct.unpack_from("<BHB", table, 52) == (0, SHORTEST_REPEAT, 0)


def test_soft_off_has_the_devices_own_sleep_type() -> None:
    r"""\_S5 is a Package whose first two elements are the SLP_TYP of the PM1 control registers (7.4.2)."""
    dsdt = find(acpi.tables(1), layout.ACPI_TABLES)["DSDT"][1]
    at = dsdt.index(b"\x08_S5_\x12") + 6
    assert dsdt[at + 1] == 4  # elements
    assert dsdt[at + 2 : at + 6] == bytes([0x0A, S5_SLP_TYP] * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cpus": 0}, "0 processors"),
        ({"cpus": 256}, "256 processors"),
        ({"cpus": 1, "base": 0xE0008}, "0xe0008"),
        ({"cpus": 1, "base": -16}, "-0x10"),
        ({"cpus": 1, "base": 0xFFFF0}, "do not end by 0x100000"),
        ({"cpus": 2, "extra_devices": [acpi.AcpiDevice("C001", "LNRO0005")]}, "'C001'"),
        ({"cpus": 2, "extra_devices": [MMIO_DEVICE, MMIO_DEVICE]}, "'DEV0'"),
        ({"cpus": 2, "extra_devices": [acpi.AcpiDevice("UART", "ns16550")]}, "'ns16550'"),
    ],
)
def test_what_cannot_be_described_is_refused(arguments: dict[str, object], message: str) -> None:
    """The error says which value is wrong."""
    with pytest.raises(ValueError, match=re.escape(message)):
        acpi.tables(**arguments)  # type: ignore[arg-type]


# --- ACPICA's own compiler as the judge ---------------------------------------------------------------------------


def iasl(directory: Path, *arguments: str) -> str:
    """Run iasl, which must find nothing to say; return what it printed."""
    assert IASL is not None
    done = subprocess.run([IASL, *arguments], cwd=directory, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def compile_asl(directory: Path, source: str) -> bytes:
    """What iasl makes of the terms `source`, without the header."""
    (directory / "t.asl").write_text(f'DefinitionBlock ("", "DSDT", 2, "IOBUS ", "TEST    ", 1) {{ {source} }}')
    assert " 0 Errors, 0 Warnings," in iasl(directory, "-on", "-p", "t", "t.asl")  # names as written
    return (directory / "t.aml").read_bytes()[36:]


@needs_iasl
@pytest.mark.parametrize("cpus", [1, 2, 255])
@pytest.mark.parametrize("signature", ["RSDT", "XSDT", "FACP", "APIC", "HPET", "FACS", "DSDT"])
def test_iasl_gives_each_table_back(cpus: int, signature: str, tmp_path: Path) -> None:
    """Disassembled and compiled again without error or warning, a table is the same but for who compiled it."""
    table = find(acpi.tables(cpus, extra_devices=[MMIO_DEVICE]), layout.ACPI_TABLES)[signature][1]
    (tmp_path / "table.aml").write_bytes(table)
    said = iasl(tmp_path, "-d", "table.aml")
    assert not re.search("warning|error|invalid|incorrect", said, re.IGNORECASE), said
    assert " 0 Errors, 0 Warnings," in iasl(tmp_path, "-p", "again", "table.dsl")
    again = (tmp_path / "again.aml").read_bytes()
    if signature != "FACS":
        table = table[:9] + b"\0" + table[10:28] + bytes(8) + table[36:]  # checksum, creator ID and revision
        again = again[:9] + b"\0" + again[10:28] + bytes(8) + again[36:]
    assert again == table


@needs_iasl
def test_the_dsdt_describes_the_pc(tmp_path: Path) -> None:
    """Each device with its ID, ports and interrupt lines, as the PC/AT has them; and no PCI host bridge."""
    table = find(acpi.tables(2, extra_devices=[MMIO_DEVICE]), layout.ACPI_TABLES)["DSDT"][1]
    (tmp_path / "dsdt.aml").write_bytes(table)
    iasl(tmp_path, "-d", "dsdt.aml")
    source = re.sub(r"/\*.*?\*/|//[^\n]*", "", (tmp_path / "dsdt.dsl").read_text(), flags=re.DOTALL)
    devices = {}
    for text in source.split("Device (")[1:]:
        (hid,) = re.findall(r'_HID, (?:EisaId \()?"(\w+)"', text)
        (uid,) = re.findall(r"_UID, (\w+)", text)
        (status,) = re.findall(r"_STA, (\w+)", text)
        assert status == "0x0F"
        ports = re.findall(r"IO \(Decode16,\s+(\w+),\s+(\w+),\s+\w+,\s+(\w+),", text)
        assert all(low == high for low, high, _ in ports)
        ranges = [(int(low, 16), int(length, 16)) for low, _, length in ports]
        lines = [int(line) for line in re.findall(r"IRQNoFlags \(\)\s+\{(\d+)\}", text)]
        devices[hid, uid] = (ranges, lines)
    assert re.search(r'"PNP0103".*?Memory32Fixed \(ReadWrite,\s+0xFED00000,\s+0x00000400,', source, re.DOTALL)
    assert devices == {
        ("ACPI0007", "Zero"): ([], []),
        ("ACPI0007", "One"): ([], []),
        ("PNP0000", "Zero"): ([(0x20, 2), (0xA0, 2), (0x4D0, 2)], [2]),
        ("PNP0100", "Zero"): ([(0x40, 4)], [0]),
        ("PNP0B00", "Zero"): ([(0x70, 2)], [8]),
        ("PNP0303", "Zero"): ([(0x60, 1), (0x64, 1)], [1]),
        ("PNP0F13", "Zero"): ([], [12]),
        ("PNP0103", "Zero"): ([], []),
        ("PNP0800", "Zero"): ([(0x61, 1)], []),
        ("PNP0501", "Zero"): ([(0x3F8, 8)], [4]),
        ("PNP0C02", "Zero"): ([(0x80, 16), (0x92, 1), (0xCF9, 1), (0x600, 12)], []),
        ("LNRO0005", "0x012C"): ([], []),
    }


@needs_iasl
def test_the_encoder_writes_what_iasl_compiles(tmp_path: Path) -> None:
    """Each kind of term, written in ASL by hand, is the same bytes from both."""
    numbers = (0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 1 << 32, (1 << 64) - 2, (1 << 64) - 1)
    source = f"""
        Name (NUMB, Package () {{ {", ".join(map(hex, numbers))} }})
        Name (TEXT, "iobus")
        Name (BYTE, Buffer () {{ {", ".join(["0x5A"] * 300)} }})
        Scope (\\_SB) {{
            Device (AAAA) {{
                Name (_HID, EisaId ("PNP0A06"))
                Device (BBBB) {{
                    Name (_HID, "ACPI0004")
                    Name (_CRS, ResourceTemplate () {{
                        IO (Decode16, 0x3F8, 0x3F8, 1, 8)
                        IRQNoFlags () {{ 3, 4 }}
                        Interrupt (ResourceConsumer, Level, ActiveLow, Shared) {{ 16, 300 }}
                        Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {{ 17 }}
                        Memory32Fixed (ReadWrite, 0xC0000000, 0x1000)
                    }})
                }}
            }}
        }}
        Name (\\_SB.AAAA.CCCC, 7)
        Name (\\_SB.AAAA.BBBB.CCCC, 7)
        OperationRegion (REGN, SystemMemory, 0xF0000, 0x1000)
        Method (MTHD, 0) {{ Load (REGN, Local0) Return (Local0) }}
    """
    ours = (
        aml.name("NUMB", aml.package(*map(aml.integer, numbers)))
        + aml.name("TEXT", aml.string("iobus"))
        + aml.name("BYTE", aml.buffer(b"\x5a" * 300))
        + aml.scope("\\_SB_", aml.device(
            "AAAA",
            aml.name("_HID", aml.hardware_id("PNP0A06")),
            aml.device(
                "BBBB",
                aml.name("_HID", aml.hardware_id("ACPI0004")),
                aml.name("_CRS", aml.resource_template(
                    aml.io(0x3F8, 8),
                    aml.irq_no_flags(3, 4),
                    aml.interrupt(16, 300, level=True, active_low=True, shared=True),
                    aml.interrupt(17),
                    aml.memory32_fixed(0xC0000000, 0x1000),
                )),
            ),
        ))
        + aml.name("\\_SB_.AAAA.CCCC", aml.integer(7))
        + aml.name("\\_SB_.AAAA.BBBB.CCCC", aml.integer(7))
        + aml.memory_region("REGN", 0xF0000, 0x1000)
        + aml.method("MTHD", 0, aml.load("REGN"), b"\xa4\x60")
    )  # fmt: skip
    assert compile_asl(tmp_path, source).hex(" ") == ours.hex(" ")


class Told(Device):
    """A device that guests are told of."""

    length = 0x200
    acpi_id = "LNRO0005"

    def __init__(self, *irqs: int) -> None:
        self.irqs = irqs

    def connect(self, pc: Pc) -> None:
        self.lines = [pc.irq(number) for number in self.irqs]


def dsdt(pc: Pc) -> bytes:
    """The DSDT in the RAM of `pc`."""
    image = pc.machine.memory.read(layout.ACPI_TABLES, layout.BIOS_AREA_END - layout.ACPI_TABLES)
    return find(image, layout.ACPI_TABLES)["DSDT"][1]


def test_a_user_s_device_is_in_the_dsdt() -> None:
    """By its `acpi_id`: its range, the interrupts it took when it was connected, and that after a reset too."""
    pc = Pc(clock=SteppedClock())
    plain = dsdt(pc)
    pc.attach(Device(), 0xC0000000, 16)
    assert dsdt(pc) == plain
    pc.irq(5)
    pc.attach(Told(0, 10), 0xD0000000)
    crs = aml.resource_template(
        aml.memory32_fixed(0xD0000000, 0x200),
        aml.interrupt(layout.TIMER_GSI, level=True),
        aml.interrupt(10, level=True),
    )
    assert dsdt(pc).count(crs) == 1 and aml.hardware_id("LNRO0005") in dsdt(pc)
    pc.attach(Told(), 0xD0001000)
    assert dsdt(pc).count(crs) == 1 and dsdt(pc).count(aml.hardware_id("LNRO0005")) == 2
    told = dsdt(pc)
    pc.reset()
    assert dsdt(pc) == told
    with pytest.raises(RegistrationError, match="Told, with acpi_id: hardware ID 'me'"):
        Told.acpi_id = "me"
        pc.attach(Told(), 0xD0002000)


@needs_iasl
def test_a_generic_event_device(tmp_path: Path) -> None:
    """It has its interrupts, edge-triggered, and a method _EVT; an SSDT is a table as others are."""
    table = acpi.ssdt(acpi.user_device(1, "ACPI0013", 0xD0000000, 16, [10]))
    (tmp_path / "ssdt.aml").write_bytes(table)
    said = iasl(tmp_path, "-d", "ssdt.aml")
    assert not re.search("warning|error|invalid|incorrect", said, re.IGNORECASE), said
    source = (tmp_path / "ssdt.dsl").read_text()
    assert re.search(r"Interrupt \(ResourceConsumer, Edge, ActiveHigh, Exclusive", source) and "Memory" not in source
    assert "Method (_EVT, 1" in source and " 0 Errors, 0 Warnings," in iasl(tmp_path, "-p", "again", "ssdt.dsl")


# --- the encoder, by the specification ------------------------------------------------------------------------------


def package_length(term: bytes) -> tuple[int, int]:
    """Decode the PkgLength (20.2.4) at the start of `term`: the length, and how many bytes tell it."""
    following = term[0] >> 6
    if following == 0:
        return term[0] & 0x3F, 1
    return term[0] & 0xF | int.from_bytes(term[1 : 1 + following], "little") << 4, 1 + following


@pytest.mark.parametrize(
    ("content", "bytes_used"), [(0, 1), (58, 1), (59, 2), (4089, 2), (4090, 3), ((1 << 20) - 8, 3), ((1 << 20) - 7, 4)]
)
def test_a_package_length_counts_itself_and_is_shortest(content: int, bytes_used: int) -> None:
    """6 bits in one byte, then 12, 20 and 28 bits (20.2.4); the name of the scope takes 4 more bytes."""
    term = aml.scope("_SB_", bytes(content))
    assert term[:1] == b"\x10"
    assert package_length(term[1:]) == (len(term) - 1, bytes_used)


@given(st.integers(0, (1 << 64) - 1))
def test_an_integer_decodes_to_itself(value: int) -> None:
    """20.2.3: ZeroOp, OneOp, OnesOp, or a prefix and 1, 2, 4 or 8 little-endian bytes."""
    code = aml.integer(value)
    constants = {0x00: 0, 0x01: 1, 0xFF: (1 << 64) - 1}
    if len(code) == 1:
        assert constants[code[0]] == value
    else:
        assert len(code) - 1 == {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[code[0]]
        assert int.from_bytes(code[1:], "little") == value


@pytest.mark.parametrize(("text", "value"), [("PNP0501", 0x0105D041), ("PNP0A03", 0x030AD041), ("ABC0123", 0x23014304)])
def test_an_eisa_id_is_packed(text: str, value: int) -> None:
    """Known values: PNP0A03 is in every PC's DSDT; ABC is 00001 00010 00011 in 5-bit letters, big-endian."""
    assert aml.eisa_id(text) == b"\x0c" + value.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("_SB_", b"_SB_"),
        ("\\", b"\\\0"),
        ("\\_SB_", b"\\_SB_"),
        ("^^AAAA", b"^^AAAA"),
        ("_SB_.COM1", b"\x2e_SB_COM1"),
        ("\\_SB_.AAAA.B123", b"\\\x2f\x03_SB_AAAAB123"),
    ],
)
def test_name_strings(path: str, code: bytes) -> None:
    """20.2.2: prefixes, then NullName, a segment, DualNamePath or MultiNamePath with its count."""
    assert aml.name_string(path) == code


@pytest.mark.parametrize(
    "path", ["COM", "COM10", "com1", "1COM", "COM 1", "_SB", "_SB_.", "\\\\_SB_", "^\\_SB_", "ÄÖÜ1"]
)
def test_a_bad_name_is_refused(path: str) -> None:
    """A name is segments of four characters (20.2.2); the error shows the whole path."""
    with pytest.raises(ValueError, match=re.escape(repr(path))):
        aml.name_string(path)


@pytest.mark.parametrize(
    ("encode", "arguments"),
    [
        (aml.name_string, (".".join(["AAAA"] * 256),)),
        (aml.integer, (-1,)),
        (aml.integer, (1 << 64,)),
        (aml.string, ("Zürich",)),
        (aml.string, ("a\0b",)),
        (aml.package, (b"\0",) * 256),
        (aml.eisa_id, ("PNP050",)),
        (aml.eisa_id, ("pnp0501",)),
        (aml.eisa_id, ("ACPI0007",)),
        (aml.hardware_id, ("PRP",)),
        (aml.hardware_id, ("ACPI00G7",)),
        (aml.io, (0x3F8, 0)),
        (aml.io, (0x3F8, 256)),
        (aml.io, (0xFFFF, 2)),
        (aml.io, (-1, 1)),
        (aml.irq_no_flags, (16,)),
        (aml.irq_no_flags, (-1,)),
        (aml.interrupt, ()),
        (aml.interrupt, tuple(range(256))),
        (aml.interrupt, (1 << 32,)),
        (aml.method, ("MTHD", 8)),
        (aml.memory32_fixed, (0xC0000000, 0)),
        (aml.memory32_fixed, (0xFFFFF000, 0x1001)),
        (aml.memory32_fixed, (-4096, 4096)),
    ],
)
def test_what_cannot_be_encoded_is_refused(encode: object, arguments: tuple[object, ...]) -> None:
    """A value outside its field raises ValueError with a sentence, never a truncated encoding."""
    assert callable(encode)
    with pytest.raises(ValueError, match=r"\w+ .*\w"):
        encode(*arguments)
