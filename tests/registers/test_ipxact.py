"""`from_ipxact`: a component's memory map, of SPIRIT or Accellera, is a device; what is not read is said."""

from __future__ import annotations

import sys

import pytest

from iobus.registers import (
    RC,
    RW,
    RW1C,
    WO,
    Dimension,
    GroupEntry,
    MapError,
    R,
    RegisterEntry,
    from_ipxact,
)
from iobus.registers.ipxact import read_ipxact

pytest.importorskip("ipyxact", reason="ipyxact is not installed")

SPIRIT = "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"
ACCELLERA = "http://www.accellera.org/XMLSchema/IPXACT/1685-2014"

BLOCK = """\
<addressBlock><name>regs</name><baseAddress>0x0</baseAddress><range>0x100</range><width>32</width>
  <usage>register</usage><access>read-write</access>
  <register><name>CTRL</name><description>Control</description><addressOffset>0x0</addressOffset><size>32</size>
    {register_reset}
    <field><name>EN</name><bitOffset>0</bitOffset>{field_reset}<bitWidth>1</bitWidth></field>
    <field><name>MODE</name><bitOffset>4</bitOffset><bitWidth>2</bitWidth>
      <enumeratedValues>
        <enumeratedValue><name>SLOW</name><value>0</value></enumeratedValue>
        <enumeratedValue><name>FAST</name><description>Full clock</description><value>{two}</value></enumeratedValue>
      </enumeratedValues></field>
    <field><name>ID</name><bitOffset>24</bitOffset><bitWidth>8</bitWidth><access>read-only</access></field>
  </register>
  <register><name>STATUS</name><addressOffset>0x4</addressOffset><size>32</size>
    <field><name>DONE</name><bitOffset>0</bitOffset><bitWidth>1</bitWidth>
      <modifiedWriteValue>oneToClear</modifiedWriteValue></field>
    <field><name>COUNT</name><bitOffset>8</bitOffset><bitWidth>8</bitWidth><access>read-only</access>
      <readAction>clear</readAction></field>
  </register>
  <register><name>KEY</name><dim>4</dim><addressOffset>0x10</addressOffset><size>16</size>
    <access>write-only</access></register>
  <registerFile><name>CH</name><dim>2</dim><addressOffset>0x40</addressOffset><range>0x10</range>
    <register><name>DATA</name><addressOffset>0x4</addressOffset><size>32</size></register></registerFile>
  {more}
</addressBlock>
"""


def component(space: str, more: str = "", blocks: str = "") -> str:
    """A component of one memory map, in the elements of a version of the format."""
    words = {"register_reset": "", "field_reset": "", "two": "2", "more": more}
    if space == SPIRIT:
        words["register_reset"] = "<reset><value>0x5A000001</value><mask>0xFFFFFFFF</mask></reset>"
    else:
        words["field_reset"] = "<resets><reset><value>1</value></reset></resets>"
        words["two"] = "2'h2"
    prefix = "spirit" if space == SPIRIT else "ipxact"
    text = (
        "<component><vendor>example.com</vendor><library>ip</library><name>timer</name><version>1.0</version>"
        f"<memoryMaps><memoryMap><name>map0</name>{BLOCK.format(**words)}{blocks}</memoryMap></memoryMaps></component>"
    )
    text = text.replace("</", "\0").replace("<", f"<{prefix}:").replace("\0", f"</{prefix}:")
    return text.replace(f"<{prefix}:component>", f'<{prefix}:component xmlns:{prefix}="{space}">')


@pytest.mark.parametrize("space", [SPIRIT, ACCELLERA])
def test_a_component_is_a_device(space: str) -> None:
    """Places, kinds, reset values of registers (2009) and fields (2014), enumerations, arrays and register files."""
    read = read_ipxact(component(space))
    assert read.notes == ()
    assert (read.map.name, read.map.length) == ("timer", 0x100)
    control, status, key, channel = read.map.members
    assert isinstance(control, RegisterEntry)
    assert {field.name: (field.lsb, field.width, field.access) for field in control.fields} == {
        "EN": (0, 1, RW), "MODE": (4, 2, RW), "ID": (24, 8, R),
    }  # fmt: skip
    assert control.reset == (0x5A000001 if space == SPIRIT else 1)
    assert [(item.name, item.value, item.doc) for item in control.fields[1].values] == [
        ("SLOW", 0, ""), ("FAST", 2, "Full clock"),
    ]  # fmt: skip
    assert isinstance(status, RegisterEntry)
    assert [field.access for field in status.fields] == [RW1C, RC]
    assert isinstance(key, RegisterEntry)
    assert (key.rest, key.width, key.array) == (WO, 16, Dimension(4, 2))
    assert isinstance(channel, GroupEntry)
    assert (channel.array, channel.members[0].offset) == (Dimension(2, 0x10), 4)
    device = from_ipxact(component(space))()
    device.write(0x54, 4, 7)
    assert device.CH[1].DATA.value == 7


def test_several_blocks_are_groups_and_top_chooses_one() -> None:
    """Without `top` the device has them all, each at its base address; memory is no register."""
    more = BLOCK.format(register_reset="", field_reset="", two="2", more="")
    more = more.replace("<name>regs", "<name>other").replace("<baseAddress>0x0", "<baseAddress>0x200")
    memory = "<addressBlock><name>ram</name><baseAddress>0x1000</baseAddress><range>64</range><usage>memory</usage>"
    text = component(SPIRIT, blocks=f"{more}{memory}</addressBlock>")
    read = read_ipxact(text)
    assert [(member.name, member.offset) for member in read.map.members] == [("regs", 0), ("other", 0x200)]
    assert read.notes == ("<text>: map0.ram: it is for memory, not registers; left out",)
    assert [member.name for member in read_ipxact(text, "map0.other").map.members] == ["CTRL", "STATUS", "KEY", "CH"]
    with pytest.raises(MapError, match=r"no address block of map0 'third'; it has regs, other$"):
        read_ipxact(text, "map0.third")
    with pytest.raises(MapError, match=r"^<text>: there is no memory map 'map1'; it has map0$"):
        read_ipxact(text, "map1")


def test_what_is_not_read_is_said_with_its_path() -> None:
    """A file inside of a file, a second index, another mode's layout, a constraint: one line each."""
    more = (
        "<registerFile><name>OUT</name><addressOffset>0x80</addressOffset><range>0x10</range>"
        "<register><name>A</name><dim>2</dim><dim>3</dim><addressOffset>0</addressOffset><size>8</size></register>"
        "<registerFile><name>IN</name><addressOffset>8</addressOffset><range>8</range></registerFile></registerFile>"
        "<register><name>B</name><addressOffset>0x90</addressOffset><size>32</size>"
        "<field><name>F</name><bitOffset>0</bitOffset><bitWidth>4</bitWidth>"
        "<writeValueConstraint><minimum>1</minimum></writeValueConstraint></field></register>"
    )
    assert read_ipxact(component(SPIRIT, more)).notes == (
        "<text>: map0.regs.OUT.A: dim: an array has one index; of several the first is read",
        "<text>: map0.regs.OUT.IN: registerFile: one inside of another is not read",
        "<text>: map0.regs.B.F: writeValueConstraint: writes are not held to it: check them in an on_write hook",
    )


OFFSET = "<spirit:addressOffset>0x4</spirit:addressOffset>"
WORDS = "oneToClear, oneToSet, oneToToggle, zeroToClear, zeroToSet, zeroToToggle, clear, set, modify"


@pytest.mark.parametrize(
    ("wrong", "right", "note"),
    [
        ("0x4</", "a+b</", "STATUS: addressOffset is 'a+b', which is no number; left out"),
        (OFFSET, "", "STATUS: it has no addressOffset; left out"),
        (">8</spirit:bitOffset", "></spirit:bitOffset", "STATUS.COUNT: it has no bitOffset; left out"),
        (">8</spirit:bitWidth", ">n</spirit:bitWidth", "CTRL.ID: bitWidth is 'n', which is no number; left out"),
        (">0x10</spirit:range", ">n</spirit:range", "CH: range is 'n', which is no number; left out"),
        (
            "<spirit:name>DONE</spirit:name>",
            "",
            "STATUS: the field at bit 0 has no name; it is called _",
        ),
        ("oneToClear", "oneToNothing", f"STATUS.DONE: modifiedWriteValue 'oneToNothing' is none of {WORDS}; left out"),
        (">clear<", ">ask<", "STATUS.COUNT: readAction 'ask' is none of clear, set, modify, modifyExternal; left out"),
        ("0x5A000001", "0x15A000001", "CTRL: reset value 0x15a000001 does not fit in 32 bits; cut"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_where_it_is(wrong: str, right: str, note: str) -> None:
    """A bad or missing number, an unknown word, a missing name: the element is named, and the rest is read."""
    text = component(SPIRIT)
    assert wrong in text
    read = read_ipxact(text.replace(wrong, right, 1))
    assert read.notes[:1] == (f"<text>: map0.regs.{note}",)
    assert {member.name for member in read.map.members} >= {"CTRL", "KEY"}


def test_a_field_of_a_reset_value_that_does_not_fit() -> None:
    """It is cut to the field's bits, and said."""
    text = component(ACCELLERA).replace("<ipxact:value>1</ipxact:value>", "<ipxact:value>3</ipxact:value>")
    assert read_ipxact(text).notes == ("<text>: map0.regs.CTRL.EN: reset value 0x3 does not fit in 1 bits; cut",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<component>\n", r"^<text>:2: no XML: "),
        ("<component/>", r"^<text>: no IP-XACT component: its outermost element is component$"),
        (component("http://www.accellera.org/XMLSchema/IPXACT/1685-2022"), r"IP-XACT 1685-2022 is not read; 1\.4, "),
        (component(SPIRIT).replace("memoryMaps", "nothing"), r"^<text>: there is no memory map in it$"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, said: str) -> None:
    """An error names the file and what is wrong."""
    with pytest.raises(MapError, match=said) as caught:
        from_ipxact(text)
    assert "\n" not in str(caught.value)


def test_without_the_parser_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """ipyxact is optional."""
    monkeypatch.setitem(sys.modules, "ipyxact", None)
    with pytest.raises(MapError, match=r"^IP-XACT needs ipyxact, .*: pip install ipyxact$"):
        from_ipxact(component(SPIRIT))
