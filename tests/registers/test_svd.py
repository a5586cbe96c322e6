"""`from_svd`: a file as vendors write them, with their liberties, is a device, and what is not taken over is said."""

from __future__ import annotations

import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from iobus.registers import (
    RES0,
    RW,
    RW1,
    RW1C,
    W1,
    WO,
    Dimension,
    GroupEntry,
    MapError,
    MapWarning,
    OnRead,
    OnWrite,
    R,
    RegisterEntry,
    RegisterMap,
    from_svd,
    kind,
)
from iobus.registers.fitting import Fitter
from iobus.registers.svd import read_svd

pytest.importorskip("svd2py", reason="svd2py is not installed")

VENDOR = """\
<?xml version="1.0" encoding="utf-8"?>
<!-- All of the format's ways to say a thing, as one finds them in the files of microcontrollers. -->
<device schemaVersion="1.3" xmlns:xs="http://www.w3.org/2001/XMLSchema-instance">
  <vendor>Example Semiconductors</vendor><name>EX32F1</name><version>1.0</version><description>A chip</description>
  <addressUnitBits>8</addressUnitBits><width>32</width>
  <size>0x20</size><access>read-write</access><resetValue>0x00000000</resetValue><resetMask>0xFFFFFFFF</resetMask>
  <peripherals>
    <peripheral>
      <name>TIMER0</name><description>A   timer</description><baseAddress>0x40010000</baseAddress>
      <addressBlock><offset>0x0</offset><size>0x400</size><usage>registers</usage></addressBlock>
      <interrupt><name>TIMER0</name><value>8</value></interrupt>
      <registers>
        <register>
          <name>CR</name><description>Control</description><addressOffset>0x00</addressOffset>
          <resetValue>0x0000_0000</resetValue>
          <fields>
            <field><name>EN</name><description>Enables it</description><bitRange>[0:0]</bitRange></field>
            <field><name>MODE</name><lsb>1</lsb><msb>2</msb>
              <enumeratedValues><name>MODE_E</name>
                <enumeratedValue><name>one-shot</name><value>0</value></enumeratedValue>
                <enumeratedValue><name>for</name><description>Goes on</description><value>0b01</value></enumeratedValue>
                <enumeratedValue><name>either</name><value>#1x</value></enumeratedValue>
                <enumeratedValue><name>other</name><isDefault>true</isDefault></enumeratedValue>
              </enumeratedValues>
            </field>
            <field><name>OLD</name><bitOffset>4</bitOffset><bitWidth>2</bitWidth><access>read-only</access>
              <enumeratedValues derivedFrom="MODE_E"/></field>
            <field><dim>3</dim><dimIncrement>2</dimIncrement><dimIndex>A,B,C</dimIndex><name>CH%sEN</name>
              <bitOffset>8</bitOffset><bitWidth>1</bitWidth></field>
            <field><name>LOCK</name><bitOffset>31</bitOffset><access>read-writeOnce</access></field>
          </fields>
        </register>
        <register><name>SR</name><addressOffset>0x4</addressOffset><access>read-write</access>
          <modifiedWriteValues>oneToClear</modifiedWriteValues>
          <fields><field><name>DONE</name><bitOffset>0</bitOffset><bitWidth>1</bitWidth></field>
            <field><name>COUNT</name><bitOffset>8</bitOffset><bitWidth>8</bitWidth><access>read-only</access>
              <readAction>clear</readAction></field></fields>
        </register>
        <register><name>CNT</name><addressOffset>0x8</addressOffset><resetValue>0xFFFFFFFF</resetValue>
          <resetMask>0x0000FFFF</resetMask></register>
        <register><name>KEY</name><addressOffset>0xC</addressOffset><access>write-only</access></register>
        <register><name>ONCE</name><addressOffset>0x10</addressOffset><access>writeOnce</access></register>
        <register><dim>4</dim><dimIncrement>4</dimIncrement><name>CCR[%s]</name>
          <addressOffset>0x20</addressOffset><size>16</size></register>
        <register><dim>2</dim><dimIncrement>0x10</dimIncrement><dimIndex>A-B</dimIndex><name>GP%s</name>
          <addressOffset>0x40</addressOffset></register>
        <register derivedFrom="CNT"><name>CNT2</name><addressOffset>0x60</addressOffset></register>
        <register><name>DR_READ</name><addressOffset>0x70</addressOffset><access>read-only</access></register>
        <register><name>DR_WRITE</name><addressOffset>0x70</addressOffset><access>write-only</access></register>
        <register><name>CCMR_IN</name><alternateRegister>CCMR_OUT</alternateRegister>
          <addressOffset>0x40</addressOffset></register>
        <cluster><dim>2</dim><dimIncrement>0x20</dimIncrement><name>DMA[%s]</name><addressOffset>0x100</addressOffset>
          <register><name>SRC</name><addressOffset>0x0</addressOffset></register>
          <cluster><name>CFG</name><addressOffset>0x8</addressOffset>
            <register><name>LEN</name><addressOffset>0x4</addressOffset><size>8</size></register></cluster>
        </cluster>
      </registers>
    </peripheral>
    <peripheral derivedFrom="TIMER0"><name>TIMER1</name><baseAddress>0x40020000</baseAddress></peripheral>
  </peripherals>
</device>
"""


def members(bank: RegisterMap) -> dict[str, RegisterEntry | GroupEntry]:
    return {member.name: member for member in bank.members}


def register(bank: RegisterMap, name: str) -> RegisterEntry:
    found = members(bank)[name]
    assert isinstance(found, RegisterEntry)
    return found


@pytest.fixture(scope="module")
def timer() -> RegisterMap:
    return read_svd(VENDOR, "TIMER0").map


def test_fields_are_where_any_of_the_three_notations_puts_them(timer: RegisterMap) -> None:
    """bitRange, lsb and msb, bitOffset and bitWidth (by default 1); `dim` makes fields of their own."""
    places = {field.name: (field.lsb, field.width) for field in register(timer, "CR").fields}
    assert places == {
        "EN": (0, 1), "MODE": (1, 2), "OLD": (4, 2), "CHAEN": (8, 1), "CHBEN": (10, 1), "CHCEN": (12, 1),
        "LOCK": (31, 1),
    }  # fmt: skip


def test_values_have_names_that_python_takes(timer: RegisterMap) -> None:
    """Keywords get a `_`, other characters become one; `derivedFrom` shares them; a default is no value."""
    fields = {field.name: field for field in register(timer, "CR").fields}
    named = [(item.name, item.value, item.doc) for item in fields["MODE"].values]
    assert named == [("one_shot", 0, ""), ("for_", 1, "Goes on")]
    assert fields["OLD"].values == fields["MODE"].values


def test_access_words_are_kinds_and_are_inherited(timer: RegisterMap) -> None:
    """access, modifiedWriteValues and readAction of a field, else of its register, else of what is around it."""
    fields = {field.name: field.access for name in ("CR", "SR") for field in register(timer, name).fields}
    assert fields == {
        "EN": RW, "MODE": RW, "OLD": R, "CHAEN": RW, "CHBEN": RW, "CHCEN": RW, "LOCK": RW1,
        "DONE": RW1C, "COUNT": kind(OnRead.CLEARS, OnWrite.IGNORED),
    }  # fmt: skip
    assert {name: register(timer, name).rest for name in ("CNT", "KEY", "ONCE", "CR")} == {
        "CNT": RW, "KEY": WO, "ONCE": W1, "CR": RES0,
    }  # fmt: skip


def test_arrays_lists_clusters_and_derived_registers(timer: RegisterMap) -> None:
    """NAME[%s] is an array, NAME%s a list of names; clusters are groups, one inside of another too."""
    assert (register(timer, "CCR").array, register(timer, "CCR").width) == (Dimension(4, 4), 16)
    assert [register(timer, name).offset for name in ("GPA", "GPB")] == [0x40, 0x50]
    assert register(timer, "CNT2").reset == register(timer, "CNT").reset == 0xFFFF
    dma = members(timer)["DMA"]
    assert isinstance(dma, GroupEntry)
    assert dma.array == Dimension(2, 0x20)
    config = dma.members[1]
    assert isinstance(config, GroupEntry)
    assert (config.name, config.offset, config.members[0].offset, config.members[0].name) == ("CFG", 8, 4, "LEN")


def test_the_peripheral_is_a_device() -> None:
    """It claims its address blocks; a pair at one address is one register for reads and one for writes."""
    with pytest.warns(MapWarning):
        device = from_svd(VENDOR, "TIMER1")()
    assert (device.map.name, device.length) == ("TIMER1", 0x400)
    device.DR_READ.value = 5
    device.write(0x70, 4, 7)
    assert (device.read(0x70, 4), device.DR_WRITE.value) == (5, 7)
    device.DMA[1].CFG.LEN.value = 9
    assert device.read(0x12C, 1) == 9


def test_what_is_not_taken_over_is_said_with_its_path() -> None:
    """Alternate registers at a taken address are left out, and numbers that are none: one line each."""
    assert read_svd(VENDOR, "TIMER0").notes == (
        "<text>: TIMER0.CR: resetValue is '0x0000_0000', which is no number; left out",
        "<text>: TIMER0.CCMR_IN: it overlaps GPA at offset 0x40; left out",
    )


WORDS = "oneToClear, oneToSet, oneToToggle, zeroToClear, zeroToSet, zeroToToggle, clear, set, modify"
STATUS = "<name>SR</name><addressOffset>0x4</addressOffset>"


@pytest.mark.parametrize(
    ("wrong", "right", "note"),
    [
        ("oneToClear", "oneToNothing", f"SR: modifiedWriteValue 'oneToNothing' is none of {WORDS}; left out"),
        (
            "<readAction>clear",
            "<readAction>ask",
            "SR.COUNT: readAction 'ask' is none of clear, set, modify, modifyExternal; left out",
        ),
        (">16</size>", ">wide</size>", "CCR[%s]: size is 'wide', which is no number; left out"),
        ("<resetValue>0xF", "<resetValue>0x1F", "CNT: resetValue 0x1ffffffff does not fit in 32 bits; cut"),
        (STATUS, "<name>SR</name>", "SR: it has no addressOffset; left out"),
        (STATUS, STATUS.replace("0x4", "zz"), "SR: addressOffset is 'zz', which is no number; left out"),
        ("<msb>2</msb>", "", "CR.MODE: it has no msb; left out"),
        ("<lsb>1</lsb>", "<lsb>l</lsb>", "CR.MODE: lsb is 'l', which is no number; left out"),
        ("<lsb>1</lsb><msb>2</msb>", "", "CR.MODE: it has no bitOffset; left out"),
        ("[0:0]", "0:0", "CR.EN: bitRange '0:0' is not of the form [msb:lsb]; left out"),
        ("<name>DONE</name>", "", "SR: the field at bit 0 has no name; it is called _"),
        (
            "<dimIncrement>0x20</dimIncrement><name>DMA",
            "<name>DMA",
            "DMA[%s]: it has no dimIncrement; left out",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_said_where_it_is(wrong: str, right: str, note: str) -> None:
    """One line for a bad or missing number, an unknown word or a missing name; no overlap that is not in the file."""
    assert wrong in VENDOR
    before = set(read_svd(VENDOR, "TIMER0").notes)
    said = [line for line in read_svd(VENDOR.replace(wrong, right, 1), "TIMER0").notes if line not in before]
    assert said[0] == f"<text>: TIMER0.{note}"
    assert not [line for line in said[1:] if "CNT2" not in line]  # which is derived from CNT


def test_what_holds_for_a_peripheral_from_elsewhere_is_said_too() -> None:
    """A number of the device that is none, and one of the peripheral that this one is derived from."""
    text = VENDOR.replace("<size>0x20</size>", "<size>wide</size>")
    notes = read_svd(text, "TIMER1").notes
    assert notes[:2] == (
        "<text>: <device>: size is 'wide', which is no number; left out",
        "<text>: TIMER0.CR: resetValue is '0x0000_0000', which is no number; left out",
    )


def test_a_wider_reset_value_that_is_inherited_is_cut_in_silence() -> None:
    """The device says all ones for every register, whatever its width: that is no mistake of a narrower one."""
    text = VENDOR.replace("<resetValue>0x00000000", "<resetValue>0xFFFFFFFF")
    read = read_svd(text, "TIMER0")
    assert register(read.map, "CCR").reset == 0xFFFF
    assert not [line for line in read.notes if "does not fit" in line]


def test_a_file_without_spaces_between_elements_is_the_same(timer: RegisterMap) -> None:
    """Minified files exist."""
    minified = "".join(line.strip() for line in VENDOR.splitlines())
    assert read_svd(minified, "TIMER0").map == timer


@pytest.mark.parametrize(
    ("text", "top", "said"),
    [
        (VENDOR, None, r"^<text>: say which peripheral is meant with top=; it has TIMER0, TIMER1$"),
        (VENDOR, "UART", r"^<text>: there is no peripheral 'UART'; it has TIMER0, TIMER1$"),
        ("<device>\n<name>\n</device>", None, r"^<text>:3: no XML: "),
        ("<html>\n</html>", None, r"^<text>: no CMSIS-SVD file: its outermost element is <html>, not <device>$"),
        (VENDOR.replace('derivedFrom="CNT"', 'derivedFrom="XYZ"'), "TIMER0", r"^<text>: .*'XYZ'"),
        (VENDOR.replace("<addressUnitBits>8", "<addressUnitBits>16"), "TIMER0", "addressUnitBits is 16"),
        ("<device>\n<name>X</name></device>", None, r"^<text>: there is no peripheral in it$"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, top: str | None, said: str) -> None:
    """An error names the file and what is wrong."""
    with pytest.raises(MapError, match=said) as caught:
        from_svd(text, top)
    assert "\n" not in str(caught.value)


def test_without_the_parser_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """svd2py is optional."""
    monkeypatch.setitem(sys.modules, "svd2py", None)
    with pytest.raises(MapError, match=r"^CMSIS-SVD needs svd2py, .*: pip install svd2py$"):
        from_svd(VENDOR, "TIMER0")


def _vendor_files() -> Path | None:
    spec = find_spec("pyocd")
    found = Path(spec.submodule_search_locations[0], "debug/svd/svd_data.zip") if spec else None  # type: ignore[index]
    return found if found is not None and found.is_file() else None


@pytest.mark.skipif(_vendor_files() is None, reason="pyocd, which brings vendors' SVD files, is not installed")
def test_every_peripheral_of_vendors_files_is_read() -> None:
    """Files that nobody wrote for iobus: each peripheral of the smallest twenty is a map, or has no registers."""
    from iobus.registers.svd import _parse, _Reader

    archive = _vendor_files()
    assert archive is not None
    with zipfile.ZipFile(archive) as files:
        for item in sorted(files.infolist(), key=lambda item: item.file_size)[:20]:
            device = _parse(item.filename, files.read(item), Fitter())
            for peripheral in device["peripherals"]["peripheral"]:
                try:
                    _Reader(item.filename, Fitter()).bank(device, peripheral["name"])
                except MapError as exc:
                    assert "there are no registers" in str(exc)
