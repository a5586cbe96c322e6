"""The start-up check of the Unicorn engine: whatever is not as expected leads to the fallback, said once.

What differs is faked: a library of another version, code that is not the known one, fields elsewhere, and
a library that finds all in its place but acts otherwise in the live guest.
"""

from __future__ import annotations

import dataclasses
import platform
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iobus.cli.boot import make_pc
from iobus.engines.unicorn import internals, native, selfcheck
from iobus.engines.unicorn import library as uc_api
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.engines.unicorn.fallback import LOST, FallbackCpu
from iobus.engines.unicorn.internals import MismatchError
from iobus.engines.unicorn.library import Library
from iobus.engines.unicorn.native import NativeCpu
from iobus.engines.unicorn.native_instance import NativeInstance
from iobus.engines.unicorn.stubs import ENTRIES
from iobus.exits import EngineError, HltExit
from iobus.machine import Machine


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has made no engine yet."""
    monkeypatch.setattr(selfcheck, "_verdict", None)
    yield


Patch = Callable[[pytest.MonkeyPatch], None]


def another_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(uc_api, "VERSION", (2, 1, 5))


def another_host(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(platform, "machine", lambda: "aarch64")


def no_function(patch: pytest.MonkeyPatch) -> None:
    real = Library.symbol
    patch.setattr(Library, "symbol", lambda self, name: None if name == "helper_stgi_x86_64" else real(self, name))


def other_code(patch: pytest.MonkeyPatch) -> None:
    """The code of one function in the place of another's."""
    real = Library.symbol
    other = {"helper_vmsave_x86_64": "helper_stgi_x86_64"}
    patch.setattr(Library, "symbol", lambda self, name: real(self, other.get(name, name)))


def another_offset(**changed: int) -> Patch:
    def change(patch: pytest.MonkeyPatch) -> None:
        real = internals.locate

        def locate(library: Library) -> internals.Offsets:
            offsets = real(library)
            return dataclasses.replace(offsets, **{name: getattr(offsets, name) + by for name, by in changed.items()})

        patch.setattr(internals, "locate", locate)

    return change


def no_msr_intercept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(selfcheck, "INTERCEPTS", native.INTERCEPTS & ~(1 << native._MSR - 0x160))


def no_hlt_intercept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(selfcheck, "INTERCEPTS", native.INTERCEPTS & ~(1 << native._HLT - 0x160))


def a_stub_that_does_nothing(patch: pytest.MonkeyPatch) -> None:
    """SYSCALL's hook returns at once."""
    real = NativeInstance._install

    def install(self: NativeInstance, intercepts: int) -> None:
        real(self, intercepts)
        self._stubs._memory[ENTRIES["syscall"]] = 0xC3  # RET

    patch.setattr(NativeInstance, "_install", install)


def a_guest_that_runs_away(patch: pytest.MonkeyPatch) -> None:
    program = selfcheck._PROGRAM | {selfcheck._CODE: "eb fe ; jmp $"}
    patch.setattr(selfcheck, "_PROGRAM", program)
    patch.setattr(selfcheck, "_SECONDS", 0.05)


def a_bug_of_ours(patch: pytest.MonkeyPatch) -> None:
    def on_cr8(self: NativeCpu) -> int:
        raise ZeroDivisionError("on purpose")

    patch.setattr(NativeCpu, "_on_cr8", on_cr8)


CASES: dict[str, tuple[Patch, str]] = {
    "another version": (another_version, "the library is Unicorn 2.1.4, not 2.1.5"),
    "another host": (another_host, "the host is aarch64"),
    "a function is missing": (no_function, "no function helper_stgi_x86_64"),
    "code is not as expected": (other_code, "the code of helper_vmsave is not as expected"),
    "the CPU's state is elsewhere": (another_offset(env=8), "register 35 is not at offset 0"),
    "MSRs are not intercepted": (no_msr_intercept, "event 0 of its check was"),
    "HLT is not intercepted": (no_hlt_intercept, "of its check was"),
    "SYSCALL's code does nothing": (a_stub_that_does_nothing, "of its check was"),
    "the guest runs away": (a_guest_that_runs_away, "event 0 of its check was (KickExit(),)"),
    "an error in the check": (a_bug_of_ours, "its check failed with ZeroDivisionError('on purpose')"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_mismatch_leads_to_the_fallback(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly one warning says why and what is lost; the same words are kept in the engine; a guest runs."""
    patch, why = CASES[case]
    patch(monkeypatch)
    engine = UnicornEngine()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        machine = Machine(engine)
    with machine:
        assert isinstance(machine.vcpus[0].executor, FallbackCpu)
        assert [(warning.category, str(warning.message)) for warning in caught] == [
            (RuntimeWarning, engine.fallback_reason)
        ]
        reason = str(engine.fallback_reason)
        assert why in reason and reason.endswith(LOST)
        machine.memory.add(0, 1 << 20)
        registers = machine.vcpus[0].registers
        registers.cs.base, registers.cs.selector, registers.rip = 0, 0, 0x7C00
        machine.vcpus[0].registers = registers
        machine.memory.write(0x7C00, b"\xb8\x07\x00\xf4")  # MOV AX, 7; HLT
        assert machine.run(timeout=20) == HltExit()
        assert machine.vcpus[0].registers.rax == 7


def test_a_passed_check_says_nothing_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines: no warning, intercepts in use, and the live guest has run for the first only."""
    runs = []
    real = selfcheck._check
    monkeypatch.setattr(selfcheck, "_check", lambda engine: (runs.append(engine), real(engine)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            engine = UnicornEngine()
            with Machine(engine) as machine:
                assert isinstance(machine.vcpus[0].executor, NativeCpu)
                assert engine.fallback_reason is None
    assert len(runs) == 1


def test_a_failed_check_is_made_once_and_told_by_each_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is the process's; each machine that runs slower than it could says so."""
    runs: list[Any] = []

    def check(engine: UnicornEngine) -> None:
        runs.append(engine)
        raise MismatchError("it is Tuesday")

    monkeypatch.setattr(selfcheck, "_check", check)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="because it is Tuesday"), Machine(UnicornEngine()):
            pass
    assert len(runs) == 1


def test_the_fallback_that_was_asked_for_is_no_warning() -> None:
    """Its reason is there to read all the same."""
    engine = UnicornEngine("fallback")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Machine(engine):
            assert "the fallback was asked for" in str(engine.fallback_reason)


def test_a_library_that_not_even_the_fallback_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its public context is laid out in another way: one sentence with what to install."""
    monkeypatch.setattr(internals, "CONTEXT_HEADER", 48)
    with pytest.raises(EngineError, match=r"cannot be used: register 35 is not at offset 48.*unicorn==2\.1\.4"):
        Machine(UnicornEngine("fallback"))


def test_the_command_says_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the PC for `iobus boot` says why and what is lost, once, and Python's warning is not shown."""
    another_version(monkeypatch)
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with make_pc(16 << 20, "unicorn", lambda data: None, said.append):
            pass
    assert len(said) == 1
    assert said[0].startswith("iobus: ") and "not 2.1.5" in said[0] and LOST in said[0] and "\n" not in said[0]
