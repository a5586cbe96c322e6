"""State records: what is saved is plain, what is restored is equal, and what does not fit is refused with its name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.bus import IobusError
from iobus.state import U8, Length, Range, State, StateError, Stateful, Time


@dataclasses.dataclass
class Channel(State):
    count: int = 0
    gate: bool = True


@dataclasses.dataclass
class Chip(State):
    index: int = 0
    latched: bool = False
    label: str = ""
    latch: int | None = None
    rom: bytes = b""
    ram: bytearray = dataclasses.field(default_factory=lambda: bytearray(2))
    fifo: list[int] = dataclasses.field(default_factory=list)
    ports: list[int] = dataclasses.field(default_factory=lambda: [0] * 3)
    channel: Channel = dataclasses.field(default_factory=Channel)
    channels: list[Channel] = dataclasses.field(default_factory=lambda: [Channel(), Channel()])
    spare: Channel | None = None
    pending: list[int] | None = dataclasses.field(default_factory=lambda: [0, 0])


class ChipDevice(Stateful):
    def __init__(self) -> None:
        self.state = Chip()
        self.seen: list[int] = []

    def restored(self) -> None:
        self.seen.append(self.state.index)


def test_what_is_saved_is_plain_data() -> None:
    """Nested records become dicts: nothing needs pickling, and without bytes it is JSON."""
    saved = Chip(index=3, latch=7, spare=Channel(5)).save()
    assert saved["channel"] == {"count": 0, "gate": True}
    assert saved["channels"] == [{"count": 0, "gate": True}] * 2
    assert saved["spare"] == {"count": 5, "gate": True} and saved["latch"] == 7
    del saved["rom"], saved["ram"]
    assert json.loads(json.dumps(saved)) == saved


def test_what_is_saved_shares_nothing() -> None:
    """Changing the record afterwards does not change what was saved, and the other way round."""
    chip = Chip(fifo=[1])
    saved = chip.save()
    chip.fifo.append(2)
    chip.channels[0].count = 9
    chip.ram[0] = 9
    assert saved["fifo"] == [1] and saved["channels"][0]["count"] == 0 and saved["ram"] == bytes(2)
    restored = Chip.restore(saved)
    saved["fifo"].append(3)
    saved["ports"][0] = 3
    assert restored.fifo == [1] and restored.ports == [0, 0, 0]


chips = st.builds(
    Chip,
    index=st.integers(),
    latched=st.booleans(),
    label=st.text(),
    latch=st.none() | st.integers(),
    rom=st.binary(),
    ram=st.binary(min_size=2, max_size=2).map(bytearray),
    fifo=st.lists(st.integers()),
    ports=st.lists(st.integers(), min_size=3, max_size=3),
    channel=st.builds(Channel, st.integers(), st.booleans()),
    channels=st.lists(st.builds(Channel, st.integers(), st.booleans()), min_size=2, max_size=2),
    spare=st.none() | st.builds(Channel, st.integers(), st.booleans()),
    pending=st.none() | st.lists(st.integers(), min_size=2, max_size=2),
)


@given(chips)
def test_save_and_restore_give_an_equal_record(chip: Chip) -> None:
    """Whatever the fields hold, restoring what was saved gives an equal record with equal saved data."""
    again = Chip.restore(chip.save())
    assert again == chip and again is not chip
    assert again.save() == chip.save()


BAD: list[tuple[str, Any, str]] = [
    ("index", "3", r"Chip\.index: got '3', want int"),
    ("index", True, r"Chip\.index: got True, want int"),
    ("index", None, r"Chip\.index: got None, want int"),
    ("index", 1.0, r"Chip\.index: got 1\.0, want int"),
    ("latched", 1, r"Chip\.latched: got 1, want bool"),
    ("label", b"x", r"Chip\.label: got b'x', want str"),
    ("rom", "x", r"Chip\.rom: got 'x', want bytes"),
    ("ram", "x", r"Chip\.ram: got 'x', want bytearray"),
    ("ram", b"x", r"Chip\.ram: 1 entries, want 2"),
    ("latch", "x", r"Chip\.latch: got 'x', want int"),
    ("fifo", 5, r"Chip\.fifo: got 5, want a list"),
    ("fifo", (1, 2), r"Chip\.fifo: got \(1, 2\), want a list"),
    ("fifo", [1, "2"], r"Chip\.fifo\[1\]: got '2', want int"),
    ("ports", [1, 2], r"Chip\.ports: 2 entries, want 3"),
    ("ports", [1, 2, 3, 4], r"Chip\.ports: 4 entries, want 3"),
    ("pending", [1], r"Chip\.pending: 1 entries, want 2"),
    ("channel", 5, r"Channel: got int, want a dict of its fields"),
    ("channel", {"count": 0}, r"Channel: field 'gate' is missing"),
    ("channels", [{"count": 0, "gate": True}], r"Chip\.channels: 1 entries, want 2"),
    ("channels", [{"count": 0, "gate": True}, {"count": 0, "gate": 2}], r"Channel\.gate: got 2, want bool"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD)
def test_data_that_does_not_fit_is_refused(field: str, value: Any, message: str) -> None:
    """The error names the field, the value and the type wanted."""
    plain = Chip().save()
    plain[field] = value
    with pytest.raises(StateError, match=message):
        Chip.restore(plain)


def test_fields_must_be_just_those() -> None:
    """A missing or an unknown field, or no dict at all, is refused and named."""
    plain = Chip().save()
    with pytest.raises(StateError, match="Chip: field 'extra' is unknown"):
        Chip.restore({**plain, "extra": 1})
    with pytest.raises(StateError, match="Chip: field 5 is unknown"):
        Chip.restore({**plain, 5: 1})
    del plain["latch"]
    with pytest.raises(StateError, match="Chip: field 'latch' is missing"):
        Chip.restore(plain)
    for wrong in (None, [], "Chip", 5):
        with pytest.raises(StateError, match=f"Chip: got {type(wrong).__name__}, want a dict of its fields"):
            Chip.restore(wrong)
    assert issubclass(StateError, IobusError) and issubclass(StateError, ValueError)


def test_a_device_restores_and_then_follows_its_state() -> None:
    """`restore` takes the state and calls `restored` once, with the new state in place."""
    device, other = ChipDevice(), ChipDevice()
    device.state.index = 5
    other.restore(device.save())
    assert other.state == device.state and other.seen == [5]
    device.state.index = 6
    assert other.state.index == 5


def test_a_device_keeps_its_state_when_the_data_is_bad() -> None:
    """After `StateError` the device is as it was, and `restored` was not called."""
    device = ChipDevice()
    device.state.index = 5
    before = device.state
    bad = device.save()
    bad["ports"] = []
    with pytest.raises(StateError):
        device.restore(bad)
    assert device.state is before and device.state.index == 5 and device.seen == []


@dataclasses.dataclass
class Limits(State):
    byte: U8 = 0
    rank: Annotated[int, Range(-3, 3)] = 0
    latch: U8 | None = None
    at: Time = 0
    data: list[U8] = dataclasses.field(default_factory=lambda: [0] * 2)
    fifo: Annotated[list[U8], Length(0, 3)] = dataclasses.field(default_factory=list)
    last: Annotated[bytes, Length(1, 2)] = b"\0"
    rows: list[list[int]] = dataclasses.field(default_factory=lambda: [[0, 0], [0]])
    used: int = 0

    def check(self) -> None:
        if self.used > len(self.fifo):
            raise StateError(f"Limits.used: {self.used} of {len(self.fifo)} entries")


OUTSIDE: list[tuple[str, Any, str]] = [
    ("byte", 256, r"Limits\.byte: got 0x100, want 0x0 to 0xff"),
    ("byte", -1, r"Limits\.byte: got -0x1, want 0x0 to 0xff"),
    ("byte", 1 << 64, r"Limits\.byte: got 0x[0-9a-f]+, want 0x0 to 0xff"),
    ("rank", -4, r"Limits\.rank: got -0x4, want -0x3 to 0x3"),
    ("latch", 256, r"Limits\.latch: got 0x100, want 0x0 to 0xff"),
    ("latch", "x", r"Limits\.latch: got 'x', want int"),
    ("at", 1 << 63, r"Limits\.at: got 0x8000000000000000, want"),
    ("data", [0, 999], r"Limits\.data\[1\]: got 0x3e7, want 0x0 to 0xff"),
    ("fifo", [0] * 4, r"Limits\.fifo: 4 entries, want 0 to 3"),
    ("fifo", [0, -1], r"Limits\.fifo\[1\]: got -0x1, want 0x0 to 0xff"),
    ("last", b"", r"Limits\.last: 0 entries, want 1 to 2"),
    ("last", b"123", r"Limits\.last: 3 entries, want 1 to 2"),
    ("rows", [[0, 0], []], r"Limits\.rows\[1\]: 0 entries, want 1"),
    ("rows", [[0, 0, 0], [0]], r"Limits\.rows\[0\]: 3 entries, want 2"),
    ("used", 1, r"Limits\.used: 1 of 0 entries"),
]


@pytest.mark.parametrize(("field", "value", "message"), OUTSIDE)
def test_what_is_out_of_range_is_refused(field: str, value: Any, message: str) -> None:
    """A number beyond its `Range`, a list beyond its `Length`, a list in a list, and what `check` finds."""
    with pytest.raises(StateError, match=message):
        Limits.restore({**Limits().save(), field: value})


def test_the_ends_of_a_range_are_in_it() -> None:
    """The least and the greatest value, the shortest and the longest list, and None where the type has it."""
    for byte, rank, fifo, last in ((0, -3, [], b"1"), (255, 3, [0, 255, 1], b"12")):
        given = Limits(byte=byte, rank=rank, latch=byte, fifo=fifo, last=last, used=len(fifo))
        assert Limits.restore(given.save()) == given
    assert Limits.restore(Limits(latch=None).save()).latch is None


@pytest.mark.parametrize("depth", [1, 100_000])
def test_what_cannot_be_shown_is_refused_by_its_type(depth: int) -> None:
    """An integer of thousands of digits and lists nested without end are named by their type alone."""
    value: Any = 10**5000
    for _ in range(depth):
        value = [value]
    with pytest.raises(StateError, match=r"Chip\.index: got a list, want int"):
        Chip.restore({**Chip().save(), "index": value})
    with pytest.raises(StateError, match="Chip: field a int is unknown"):
        Chip.restore({**Chip().save(), 10**5000: 1})
    with pytest.raises(StateError, match=r"Limits\.byte: got 0x[0-9a-f]+, want 0x0 to 0xff"):
        Limits.restore({**Limits().save(), "byte": 10**5000})
    while isinstance(value, list):  # taken apart by hand: the interpreter would recurse
        value = value[0]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Chip)]), json_like)
def test_any_data_is_taken_or_refused(field: str, value: Any) -> None:
    """Whatever stands in a field, `restore` gives a record that saves to the same, or raises `StateError`."""
    plain = {**Chip().save(), field: value}
    with contextlib.suppress(StateError):
        assert Chip.restore(plain).save() == plain
