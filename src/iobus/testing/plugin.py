"""The pytest plugin: fixtures `machine`, `bus` and `guest`, and what a failed test says of its machine.

pytest finds it by the entry point `pytest11` once iobus is installed. It imports nothing of iobus before a test
asks for a fixture, for it is loaded in every run of pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from iobus.machine import Machine
    from iobus.testing.bench import Bench
    from iobus.testing.guest import Guest
    from iobus.testing.tidy import Guests

Report = Callable[[], str]

_ENGINES: Final = ("none", "unicorn", "kvm", "auto")
_REPORTS: Final = pytest.StashKey[list[tuple[str, Report]]]()
"""What is shown of a test that fails: by title, the text, made when it is asked for."""
_GUEST: Final = pytest.StashKey["Guest"]()
_BENCH: Final = pytest.StashKey["Bench"]()


def pytest_configure(config: pytest.Config) -> None:
    """Have the mark known."""
    config.addinivalue_line(
        "markers",
        "iobus_engine(*names): the test runs on each of these engines, of none (no CPU), unicorn, kvm and auto",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each engine that the mark names."""
    mark = metafunc.definition.get_closest_marker("iobus_engine")
    if mark is not None and "_iobus_engine" in metafunc.fixturenames:
        for name in mark.args:
            if name not in _ENGINES:
                raise pytest.UsageError(f"iobus_engine({name!r}) of {metafunc.definition.nodeid}: use {_ENGINES}")
        metafunc.parametrize("_iobus_engine", mark.args, indirect=True)


@pytest.fixture
def _iobus_engine(request: pytest.FixtureRequest) -> str:
    """The engine that the test's mark names; empty without one."""
    return getattr(request, "param", "")


@pytest.fixture
def machine(_iobus_engine: str) -> Iterator[Machine]:
    """A machine for tests of devices, by default without a CPU; the test steps its clock (`iobus.machine.Machine`)."""
    from iobus.clock import SteppedClock
    from iobus.machine import Machine

    engine = None
    if _iobus_engine not in ("", "none"):
        from iobus.engines import choose
        from iobus.exits import EngineError

        try:
            engine = choose.make(_iobus_engine)
        except EngineError as exc:
            pytest.skip(f"no engine {_iobus_engine}: {exc}")
    with Machine(engine, clock=SteppedClock()) as made:
        yield made


@pytest.fixture
def bus(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """What a test does with `machine`: attach devices, access them as a guest does (`iobus.testing.Bench`)."""
    from iobus.testing.bench import bench

    with bench(machine) as made:
        _report(request, "what a callback raised", made.failure)
        _report(request, "the last accesses", made.history.report)
        request.node.stash[_BENCH] = made
        yield made
        del request.node.stash[_BENCH]


@pytest.fixture(scope="session")
def _iobus_guests() -> Iterator[Guests]:
    """The session's guests, each booted when it is first used."""
    from iobus.testing.tidy import Guests

    guests = Guests()
    yield guests
    guests.close()


@pytest.fixture
def guest(_iobus_guests: Guests, _iobus_engine: str, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A booted Linux with a shell, as it was after its boot (`iobus.testing.Guest`)."""
    from iobus.boot.debian import GuestUnavailableError
    from iobus.engines import choose
    from iobus.exits import EngineError

    engine = _iobus_engine or "auto"
    if why := choose.why_no_guest(engine):
        pytest.skip(f"no guest on the engine {engine}: {why}")
    try:
        made = _iobus_guests.enter(engine, request.node.nodeid)
    except (GuestUnavailableError, EngineError) as exc:
        pytest.skip(f"no guest: {exc}")
    _report(request, "the last accesses", made.history.report)
    _report(request, "the guest's console", lambda: made.log.strip())
    request.node.stash[_GUEST] = made
    yield made
    del request.node.stash[_GUEST]
    _iobus_guests.leave(made)


def _report(request: pytest.FixtureRequest, title: str, report: Report) -> None:
    request.node.stash.setdefault(_REPORTS, []).append((title, report))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """A test that passes fails all the same where a device's callback raised, or the guest's kernel complained."""
    if _GUEST in item.stash:
        from iobus.boot.debian import GuestUnavailableError

        try:
            yield
        except GuestUnavailableError as exc:
            pytest.skip(f"no kernel module: {exc}")
        item.stash[_GUEST].check()
    else:
        yield
    if _BENCH in item.stash:
        item.stash[_BENCH].check()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what happened last on the machine of a test to its failure."""
    report = yield
    if report.failed:
        for title, text in item.stash.get(_REPORTS, ()):
            if shown := text():
                report.sections.append((f"iobus: {title}", shown))
    if report.when == "teardown" and _REPORTS in item.stash:
        del item.stash[_REPORTS]  # pytest keeps its items: let the machine go
    return report
