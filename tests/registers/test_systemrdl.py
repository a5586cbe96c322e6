"""`from_systemrdl`: what the words of SystemRDL mean for a guest, and what is said of those that mean nothing here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from iobus.bus import Bus
from iobus.registers import (
    RW,
    GroupEntry,
    MapError,
    MapWarning,
    OnRead,
    OnWrite,
    RegisterEntry,
    from_systemrdl,
    kind,
    on_write,
)
from iobus.registers.systemrdl import read_systemrdl

pytest.importorskip("systemrdl", reason="systemrdl-compiler is not installed")

TIMER = """\
addrmap timer {
    name = "A timer";
    desc = "It counts down.";
    reg {
        desc = "What it does";
        enum mode { ONE_SHOT = 0; PERIODIC = 1 { desc = "Again and again"; }; };
        field { sw = w; singlepulse; desc = "Starts it"; } START[0:0] = 0;
        field { sw = rw; encode = mode; } MODE[2:1] = 1;
        field { sw = r; hw = na; } VERSION[31:28] = 2;
    } CTRL @ 0x0;
    reg {
        field { sw = rw; hw = w; onwrite = woclr; } DONE[0:0];
    } STATUS @ 0x4;
    regfile {
        reg { regwidth = 16; field {} VALUE[15:0] = 0xbeef; } LIMIT[2] @ 0x0 += 4;
    } CHANNEL[3] @ 0x10 += 0x10;
};
"""


def register(text: str) -> RegisterEntry:
    """The register of a field or of a register's body."""
    entry = read_systemrdl(f"addrmap top {{ reg {{ {text} }} R @ 0; }};").map.members[0]
    assert isinstance(entry, RegisterEntry)
    return entry


@pytest.mark.parametrize(
    ("words", "on_read", "on_write"),
    [
        ("sw = rw;", OnRead.VALUE, OnWrite.STORES),
        ("sw = r;", OnRead.VALUE, OnWrite.IGNORED),
        ("sw = w;", OnRead.ZERO, OnWrite.STORES),
        ("sw = rw1;", OnRead.VALUE, OnWrite.ONCE),
        ("sw = w1;", OnRead.ZERO, OnWrite.ONCE),
        ("sw = rw; singlepulse;", OnRead.ZERO, OnWrite.CLEARS),
        ("sw = r; rclr;", OnRead.CLEARS, OnWrite.IGNORED),
        ("sw = r; rset;", OnRead.SETS, OnWrite.IGNORED),
        ("sw = r; onread = rclr;", OnRead.CLEARS, OnWrite.IGNORED),
        ("sw = r; onread = ruser;", OnRead.EFFECT, OnWrite.IGNORED),
        ("woclr;", OnRead.VALUE, OnWrite.ONE_CLEARS),
        ("woset;", OnRead.VALUE, OnWrite.ONE_SETS),
        ("onwrite = woclr;", OnRead.VALUE, OnWrite.ONE_CLEARS),
        ("onwrite = woset;", OnRead.VALUE, OnWrite.ONE_SETS),
        ("onwrite = wot;", OnRead.VALUE, OnWrite.ONE_TOGGLES),
        ("onwrite = wzc;", OnRead.VALUE, OnWrite.ZERO_CLEARS),
        ("onwrite = wzs;", OnRead.VALUE, OnWrite.ZERO_SETS),
        ("onwrite = wzt;", OnRead.VALUE, OnWrite.ZERO_TOGGLES),
        ("onwrite = wclr;", OnRead.VALUE, OnWrite.CLEARS),
        ("onwrite = wset;", OnRead.VALUE, OnWrite.SETS),
        ("onwrite = wuser;", OnRead.VALUE, OnWrite.EFFECT),
        ("sw = w; onwrite = woset;", OnRead.ZERO, OnWrite.ONE_SETS),
        ("onread = rclr; onwrite = woset;", OnRead.CLEARS, OnWrite.ONE_SETS),
    ],
)
def test_access_words_are_kinds(words: str, on_read: OnRead, on_write: OnWrite) -> None:
    """sw, onread and onwrite (SystemRDL 2.0, 9.4 to 9.6) are what a guest's accesses do."""
    external = "external" if "user" in words else ""
    text = f"addrmap top {{ reg {{ field {{ {words} }} F[1] = 0; }} {external} R @ 0; }};"
    entry = read_systemrdl(text).map.members[0]
    assert isinstance(entry, RegisterEntry)
    assert entry.fields[0].access == kind(on_read, on_write)


def test_a_description_is_a_device() -> None:
    """Names, places, widths, reset values, enums, arrays and docs are the file's, and a guest's accesses obey them."""
    timer = from_systemrdl(TIMER)()
    assert timer.map.doc == "A timer. It counts down."
    bus = Bus()
    bus.attach(timer, 0)
    assert bus.read(0, 4) == 0x20000002  # VERSION, and MODE; START reads 0
    assert bus.read(0x34, 2) == 0xBEEF
    timer.STATUS.DONE = 1
    bus.write(4, 4, 1)
    assert timer.STATUS.DONE == 0
    timer.CHANNEL[2].LIMIT[1].VALUE = 7
    assert str(timer.describe(0, 4, 2, True)[0]) == "CTRL 0x2 (START=0 MODE=PERIODIC VERSION=0)"
    assert bus.read(0x34, 2) == 7


def test_a_device_is_derived_from_it() -> None:
    """The class is a base: hooks name their registers in strings, and views are attributes."""
    started: list[int] = []

    class Timer(from_systemrdl(TIMER)):  # type: ignore[misc]
        @on_write("CTRL.START")
        def start(self, value: int) -> None:
            started.append(value)
            self.STATUS.DONE = 1

    timer = Timer()
    timer.write(0, 4, 1)
    assert (started, timer.read(4, 4)) == ([1], 1)


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    """Includes are found beside the file, and an error in one is said to be there."""
    (tmp_path / "field.rdl").write_text("field go { sw = rw; };\n")
    chip = tmp_path / "chip.rdl"
    chip.write_text('`include "field.rdl"\naddrmap chip { reg { go GO[0:0] = 1; } CTRL @ 0; };\n')
    assert from_systemrdl(chip)().read(0, 4) == 1
    assert from_systemrdl(str(chip))().read(0, 4) == 1
    (tmp_path / "field.rdl").write_text("\nfield go { sw = rv; };\n")
    with pytest.raises(MapError, match=rf"^{tmp_path}/field\.rdl:2: "):
        from_systemrdl(chip)


def test_a_description_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text includes them, from the current directory; what is wrong in one is said to be there."""
    (tmp_path / "a.rdl").write_text("addrmap a { reg { field {} F; } R @ 0x4; };\n")
    (tmp_path / "b.rdl").write_text("addrmap b { a one @ 0x0; a two @ 0x10; };\n")
    monkeypatch.chdir(tmp_path)
    text = '`include "a.rdl"\n`include "b.rdl"\n'
    assert [member.name for member in read_systemrdl(text).map.members] == ["one", "two"]
    (tmp_path / "b.rdl").write_text("\naddrmap b { c one; };\n")
    with pytest.raises(MapError, match=r"b\.rdl:2: Type 'c' is not defined$"):
        read_systemrdl(text)


def test_bits_that_count_from_the_top() -> None:
    """In an msb0 addrmap bit 0 is the highest: of 16 bits, [0:3] are 15 to 12."""
    text = "addrmap top { msb0; reg { regwidth = 16; field {} F[0:3] = 9; field {} G[15:15] = 1; } R @ 0; };"
    entry = read_systemrdl(text).map.members[0]
    assert isinstance(entry, RegisterEntry)
    assert {field.name: (field.lsb, field.width) for field in entry.fields} == {"F": (12, 4), "G": (0, 1)}
    assert entry.reset == 0x9001


def test_top_chooses_the_addrmap() -> None:
    """By default the last one; by its name another; with dots one inside of it, whose offsets begin at 0."""
    text = (
        "addrmap uart { reg { field {} F; } DATA @ 0x8; };\n"
        "addrmap soc { uart uart0 @ 0x100; uart uart1 @ 0x200; reg { field {} F; } ID @ 0; };\n"
        "addrmap other { reg { field {} F; } LAST @ 0; };\n"
    )
    assert read_systemrdl(text).map.name == "other"
    assert read_systemrdl(text, "uart").map.members[0].name == "DATA"
    soc = read_systemrdl(text, "soc").map.members
    assert [(member.name, member.offset, type(member)) for member in soc] == [
        ("ID", 0, RegisterEntry), ("uart0", 0x100, GroupEntry), ("uart1", 0x200, GroupEntry),
    ]  # fmt: skip
    inner = read_systemrdl(text, "soc.uart1").map
    assert (inner.name, inner.members[0].offset) == ("uart1", 8)
    with pytest.raises(MapError, match=r"^<text>: soc has no addrmap or regfile 'uart2'; it has uart0, uart1$"):
        read_systemrdl(text, "soc.uart2")
    with pytest.raises(MapError, match="'spi' not found"):
        read_systemrdl(text, "spi")


UNSUPPORTED = """\
addrmap top {
    reg { field {} F; } CTRL @ 0x0;
    external mem { mementries = 4; memwidth = 32; } BUFFER @ 0x100;
    reg { regwidth = 128; field {} F; } WIDE @ 0x20;
    reg { field {} F; } MATRIX[2][3] @ 0x40;
    reg { field { swwe; } F; } LOCKED @ 0x60;
    reg setter { field { onwrite = woset; } F; }; alias CTRL setter CTRL_SET @ 0x4;
};
"""


def test_what_is_not_taken_over_is_said_with_its_line() -> None:
    """Memories and registers wider than an access are left out; the rest of the file is there."""
    read = read_systemrdl(UNSUPPORTED)
    assert sorted(read.notes) == [
        "<text>:3: top.BUFFER: it is a memory, which is no register; left out",
        "<text>:4: top.WIDE: it is 128 bits wide, and registers are 8, 16, 32 or 64; left out",
        "<text>:5: top.MATRIX: the array [2][3] has one index here, from 0 to 5",
        "<text>:6: top.LOCKED.F: swwe is not looked at: undo the write in an on_write hook",
        "<text>:7: top.CTRL_SET: it is an alias of CTRL, and has its own value here",
    ]
    assert [member.name for member in read.map.members] == ["CTRL", "CTRL_SET", "MATRIX", "LOCKED"]
    with pytest.warns(MapWarning) as warned:
        from_systemrdl(UNSUPPORTED)
    assert sorted(str(item.message) for item in warned) == sorted(read.notes)
    assert {item.filename for item in warned} == {__file__}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("addrmap top {\n  reg { field {} F[40:33]; } R;\n};", r"^<text>:2: "),
        ("addrmap top {\n\n  oops\n};", r"^<text>:4: "),
        ("addrmap top { };", r"^<text>: Address map .top. must contain"),
        ("reg data { field {} F; };", "Could not find any 'addrmap'"),
        (
            "addrmap top { bridge; addrmap { reg { field {} F; } R; } a; addrmap { reg { field {} F; } R; } b; };",
            r"top is a bridge; say which of its views is meant with top=: top\.a, top\.b",
        ),
        ("addrmap top { external mem { mementries = 1; memwidth = 32; } M @ 0; };", "there are no registers"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, said: str) -> None:
    """An error names the file, the line where there is one, and what is wrong."""
    with pytest.raises(MapError, match=said) as caught:
        from_systemrdl(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """It is named, with the reason."""
    with pytest.raises(MapError, match=rf"^{tmp_path}/no\.rdl cannot be read: No such file or directory$"):
        from_systemrdl(tmp_path / "no.rdl")


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemrdl-compiler is optional."""
    monkeypatch.setitem(sys.modules, "systemrdl.compiler", None)
    with pytest.raises(MapError, match=r"^SystemRDL needs systemrdl-compiler, .*: pip install systemrdl-compiler$"):
        from_systemrdl(TIMER)


def test_registers_of_the_file_are_there_for_tests() -> None:
    """The entry of a plain register is what a class body would have given."""
    assert register("field {} F[7:4] = 3;").fields[0].access == RW
    assert register("field {} F[7:4] = 3;").reset == 0x30
