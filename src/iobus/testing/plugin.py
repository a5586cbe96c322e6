"""The pytest plugin: fixtures `machine` and `bus`, and what a failed test says of its machine.

pytest finds it by the entry point `pytest11` once iobus is installed. It imports nothing of iobus before a test
asks for a fixture, for it is loaded in every run of pytest.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from iobus.machine import Machine
    from iobus.testing.bench import Bench
    from iobus.testing.history import History

_HISTORIES: Final = pytest.StashKey[list["History"]]()


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine for tests of devices: without a CPU, its clock stepped by the test (`iobus.machine.Machine`)."""
    from iobus.clock import SteppedClock
    from iobus.machine import Machine

    with Machine(clock=SteppedClock()) as made:
        yield made


@pytest.fixture
def bus(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """What a test does with `machine`: attach devices, access them as a guest does (`iobus.testing.Bench`)."""
    from iobus.testing.bench import bench

    with bench(machine) as made:
        request.node.stash.setdefault(_HISTORIES, []).append(made.history)
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what happened last on the machine of a test to its failure."""
    report = yield
    if report.failed:
        for history in item.stash.get(_HISTORIES, ()):
            text = history.report()
            if text:
                report.sections.append(("iobus: the last accesses", text))
    if report.when == "teardown" and _HISTORIES in item.stash:
        del item.stash[_HISTORIES]  # pytest keeps its items: let the machine go
    return report
