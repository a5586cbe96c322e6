"""Any guest at any device, and any data as a saved state: nothing raises that should not, and nothing is lost."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from device_fuzz import NAMES, Rig, fuzz, fuzz_pc
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.state import StateError


@pytest.mark.parametrize("name", NAMES)
def test_any_guest(name: str) -> None:
    """Accesses of any size and value, time, pins: values fit, and a restored device goes on as the saved one does."""
    for seed in range(3):
        fuzz(name, 1500, seed, check_every=250)


def test_any_guest_of_a_whole_pc() -> None:
    """Two CPUs all over the address map, LAPICs moved onto RAM and other devices: all states can be restored."""
    fuzz_pc(8000, 0, check_every=2000)


def places(plain: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in saved data, lists and dicts included."""
    keys = list(plain) if isinstance(plain, dict) else range(len(plain)) if isinstance(plain, list) else ()
    return [path, *(found for key in keys for found in places(plain[key], (*path, key)))]


def replaced(plain: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = plain.copy()
    copy[path[0]] = replaced(plain[path[0]], path[1:], value)
    return copy


def try_out(rig: Rig, plain: Any, rng: random.Random) -> bool:
    """Restore `plain`; where it is not refused, use the device. Return whether it was taken."""
    try:
        other = rig.restored(plain)
    except StateError:
        return False
    assert other.device.save() == plain
    for _ in range(2):
        for base, length in other.bounds:
            for offset in (*range(min(length, 16)), *other.interesting):
                other.bus.read(base + offset, 1)
        for _ in range(15):
            other.step(rng)
        for event in other.events[-6:]:
            event(rng)
    with contextlib.suppress(StateError):  # a time at the end of what a record can hold may have gone beyond it
        other.restored(other.device.save())
    return True


ODD = [
    None, True, "1", b"1", {}, [], [0] * 300, [[]], [256], [-1], 1.0,
    -1, 2, 3, 5, 8, 0x10, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 1 << 31, 1 << 32, (1 << 62) + 1, 1 << 63, 1 << 64,
    1 << 200, 1 << 300, -(1 << 63), -(1 << 64),
]  # fmt: skip


NUMBERED = [name for name in NAMES if name != "echo_memory"]
"""Those whose records have numbers."""


@pytest.mark.parametrize("name", NUMBERED)
def test_one_odd_value_anywhere_in_a_saved_state(name: str) -> None:
    """Each value of the record in turn is another: refused with `StateError`, or the device never raises later."""
    rng, rig = random.Random(name), Rig(name)
    taken = 0
    for _ in range(3):
        for _ in range(40):
            rig.step(rng)
        plain = rig.device.save()
        listed = places(plain)
        for path in rng.sample(listed, min(len(listed), 60)):
            for value in ODD:
                taken += try_out(rig, replaced(plain, path, value), rng)
    assert taken, "every odd value was refused: the accesses tried nothing"


NUMBERS = st.integers(-2, 300) | st.integers(0, 300).map(lambda n: 1 << n) | st.integers()


@pytest.mark.parametrize("name", NUMBERED)
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.tuples(st.integers(0, 1 << 16), NUMBERS), min_size=2, max_size=5))
def test_several_numbers_of_a_saved_state(name: str, seed: int, changes: list[tuple[int, int]]) -> None:
    """The same of several numbers at once, which may contradict each other."""
    rng, rig = random.Random(seed), Rig(name)
    for _ in range(30):
        rig.step(rng)
    plain = rig.device.save()
    numbers = [path for path in places(plain) if path and type(_at(plain, path)) in (int, type(None))]
    for number, value in changes:
        plain = replaced(plain, numbers[number % len(numbers)], value)
    try_out(rig, plain, rng)


def _at(plain: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        plain = plain[key]
    return plain
