"""Whatever lies on the buses and whatever a guest does there: devices, doorbells and the guest see the same.

An engine is held beside accesses without a CPU, on the same registrations, which tests/test_bus_property.py holds
beside a linear search.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from accesses import Accesses, Kind, Op
from bus_devices import Recorder
from hypothesis import given, settings
from hypothesis import strategies as st
from kvm_rig import why_not
from rig import MMIO

from iobus.bus import Region

SPAN = 32

REGION = st.fixed_dictionaries({
    "at": st.integers(0, SPAN // 4 - 1).map(lambda word: 4 * word),
    "length": st.sampled_from([4, 8, 16]),
    "priority": st.integers(0, 1),
    "sizes": st.sampled_from([(1, 2, 4), (4,), (1,)]),
    "implements": st.sampled_from([None, (1,), (4,)]),
    "endian": st.sampled_from(["little", "big"]),
    "own": st.booleans(),
    "coalesce": st.booleans(),
    "declines": st.booleans(),
    "bells": st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 4]), st.none() | st.integers(0, 1))),
})  # fmt: skip
OP = st.tuples(st.integers(0, SPAN // 4 - 1), st.sampled_from([1, 2, 4]), st.none() | st.integers(0, 2))


class Logging(Recorder):
    """Puts what it sees into one log."""

    def __init__(self, name: str, log: list[Any], declines: bool) -> None:
        super().__init__(len(name) + 1, name)
        self.log, self.declines = log, declines

    def read(self, offset: int, size: int) -> Any:
        self.log.append((self.name, offset, size))
        return NotImplemented if self.declines else self.answer

    def write(self, offset: int, size: int, value: int) -> Any:
        self.log.append((self.name, offset, size, value))
        return NotImplemented if self.declines else None


@pytest.fixture(scope="module", params=["unicorn", "kvm"])
def sides(request: pytest.FixtureRequest) -> Iterator[tuple[Accesses, Accesses]]:
    """A machine on the engine, and one without a CPU."""
    if request.param == "kvm" and why_not():
        pytest.skip(why_not())
    kind: Kind = request.param
    with ExitStack() as stack:
        yield stack.enter_context(Accesses(kind)), stack.enter_context(Accesses("none"))


def seen(guest: Accesses, regions: list[dict[str, Any]], ops: list[Op]) -> dict[str, Any]:
    """Attach the regions, make the accesses, and say what came of it."""
    log: list[Any] = []
    attached: list[Region] = []
    bells = []
    guest.exits.clear()
    for number, spec in enumerate(regions):
        bus = guest.vcpu.mmio if spec["own"] else guest.machine.mmio
        region = bus.attach(
            Logging("x" * number, log, spec["declines"]), MMIO + spec["at"], spec["length"], priority=spec["priority"],
            sizes=spec["sizes"], implements=spec["implements"], endian=spec["endian"],
        )  # fmt: skip
        attached.append(region)
        region.coalesce = spec["coalesce"]
        for offset, size, value in spec["bells"]:
            taken = any(offset == bell.offset for bell in region.doorbells)
            if size in region.sizes and offset + size <= region.length and not taken:
                bells.append(region.doorbell(offset, size, value))
    try:
        values = guest.make(ops, answer=0x77)
        return {"values": values, "log": log, "rings": [bell.take() for bell in bells], "exits": list(guest.exits)}
    finally:
        for region in attached:
            region.detach()


@settings(max_examples=60)
@given(regions=st.lists(REGION, max_size=4), ops=st.lists(OP, max_size=12))
def test_all_see_the_same(
    sides: tuple[Accesses, Accesses], regions: list[dict[str, Any]], ops: list[tuple[int, int, int | None]]
) -> None:
    """Values, the devices' common log, rings and exits: on the engine as without a CPU."""
    made = [Op(MMIO + 4 * word, size, value) for word, size, value in ops]
    engine, alone = sides
    assert seen(engine, regions, made) == seen(alone, regions, made)
