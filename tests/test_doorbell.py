"""Events and doorbells at the bus: what may be asked for, and what an engine is told. tests/engines has the guests."""

from __future__ import annotations

import select

import pytest
from bus_devices import Recorder
from hypothesis import given
from hypothesis import strategies as st

from iobus.bus import Bus, RegistrationError
from iobus.doorbell import Event


def test_an_event_counts_and_is_taken_once() -> None:
    """Rings add up until they are taken; the descriptor is readable exactly while there are some."""
    event = Event()
    assert event.take() == 0 and event.wait(0) == 0
    event.ring()
    event.ring()
    assert select.select([event], [], [], 0)[0] == [event]
    assert event.wait() == 2
    assert select.select([event], [], [], 0)[0] == []


def test_a_closed_event_says_so() -> None:
    """Closing twice is nothing; using it is an error with a sentence."""
    event = Event()
    event.close()
    event.close()
    with pytest.raises(ValueError, match="the event is closed"):
        event.ring()


@pytest.mark.parametrize(
    ("offset", "size", "value", "words"),
    [
        (0, 3, None, r"guests may use the sizes \(2, 4\) here"),
        (0, 1, None, r"guests may use the sizes \(2, 4\) here"),
        (-4, 4, None, "the region has 0x10 bytes"),
        (14, 4, None, "the region has 0x10 bytes"),
        (0, 2, 0x10000, "value=0x10000 does not fit; use 0 to 0xffff, or None"),
        (0, 2, -1, "value=-0x1 does not fit"),
    ],
)
def test_a_doorbell_that_cannot_be_rung_is_refused(offset: int, size: int, value: int | None, words: str) -> None:
    """The error names the region, the doorbell, and what would be right."""
    region = Bus().attach(Recorder(), 0x1000, 16, name="nic", sizes=(2, 4))
    with pytest.raises(
        RegistrationError, match=f"region 'nic': doorbell of {size} bytes at offset {offset:#x}: {words}"
    ):
        region.doorbell(offset, size, value)


@pytest.mark.parametrize(("first", "second"), [(None, None), (None, 1), (1, None), (1, 1)])
def test_two_doorbells_for_one_write_are_refused(first: int | None, second: int | None) -> None:
    """A write rings one doorbell; closed, it leaves the place to another."""
    region = Bus().attach(Recorder(), 0x1000, 16)
    bell = region.doorbell(4, 4, first)
    with pytest.raises(
        RegistrationError, match=r"such writes are <Doorbell 4-byte write.* at offset 0x4>'s; close that"
    ):
        region.doorbell(4, 4, second)
    region.doorbell(4, 2, second)
    region.doorbell(6, 2, second)
    bell.close()
    assert region.doorbell(4, 4, second) in region.doorbells


def test_who_has_no_place_has_no_doorbells() -> None:
    """Neither an in_range registration nor a region that has left; a doorbell closes after its region all the same."""

    class Everywhere(Recorder):
        def in_range(self, address: int, size: int) -> bool:
            return True

    bus = Bus()
    with pytest.raises(RegistrationError, match="a region that in_range claims has no doorbells"):
        bus.attach(Everywhere()).doorbell(0, 4)
    region = bus.attach(Recorder(), 0, 8, name="gone")
    bell = region.doorbell(0, 4)
    region.detach()
    bell.close()
    with pytest.raises(RegistrationError, match="cannot give a doorbell to region 'gone': it was detached"):
        region.doorbell(0, 4)
    with pytest.raises(RegistrationError, match="cannot coalesce writes to region 'gone': it was detached"):
        region.coalesce = True


def test_shortcuts_are_the_enabled_regions_with_something_to_have_nearer() -> None:
    """An engine finds there each region with a doorbell or coalesced writes, and hears of each change."""
    bus = Bus()
    changes: list[list[str]] = []
    bus.on_change(lambda: changes.append([region.name for region in bus.shortcuts]))
    a, b = bus.attach(Recorder(), 0, 8, name="a"), bus.attach(Recorder(), 8, 8, name="b")
    a.coalesce = True
    a.coalesce = True  # as it is
    bell = b.doorbell(0, 4)
    a.enable(False)
    a.enable()
    bell.close()
    a.detach()
    assert changes == [[], [], ["a"], ["a", "b"], ["b"], ["b", "a"], ["a"], []]


@given(
    claims=st.lists(
        st.tuples(st.integers(0, 63), st.integers(1, 16), st.integers(0, 2), st.booleans()), min_size=1, max_size=8
    ),
    base=st.integers(0, 70),
    length=st.integers(1, 9),
    which=st.integers(0, 8),
)
def test_contested_is_what_the_order_of_claims_says(
    claims: list[tuple[int, int, int, bool]], base: int, length: int, which: int
) -> None:
    """As told by going through all claims: one that overlaps the range and stands in front of the region."""
    bus = Bus()
    regions = [bus.attach(Recorder(), at, size, priority=priority) for at, size, priority, _ in claims]
    for region, (_, _, _, enabled) in zip(regions, claims, strict=True):
        region.enable(enabled)
    region = regions[which] if which < len(regions) else None
    order = sorted(regions, key=lambda r: (-r.priority, regions.index(r)))
    before = order[: order.index(region)] if region else order
    expected = any(r.enabled and r.base < base + length and base < r.base + r.length for r in before)
    assert bus.is_contested(base, length, region) == expected
