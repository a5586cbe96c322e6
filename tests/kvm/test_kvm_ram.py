"""Guest RAM as the kernel's memory slots: what happens where the kernel does not take one.

What a guest sees of its RAM is in tests/engines, the same on every engine.
"""

from __future__ import annotations

from typing import Any

import pytest
from bus_devices import Recorder
from kvm_rig import Guest, needs_kvm
from rig import DATA, code64

from iobus.engines.kvm import ram
from iobus.exits import EngineError

pytestmark = needs_kvm

LOADS = code64("""
    8b 07  ; mov eax, [rdi]
    f4     ; hlt
""")


@pytest.fixture
def refuses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which requests from now on the kernel refuses: the first is number 0."""
    real, refused, made = ram.call, [], iter(range(1000))

    def call(fd: int, request: Any, argument: Any) -> int:
        if next(made) in refused:
            raise EngineError(f"the kernel refuses {request.name}: Cannot allocate memory")
        return real(fd, request, argument)

    monkeypatch.setattr(ram, "call", call)
    return refused


def test_ram_that_was_refused_is_asked_for_again(refuses: list[int]) -> None:
    """The run says that there is no memory for it; the next run has it."""
    with Guest(LOADS) as guest:
        guest.memory.write(DATA, b"\x2a\0\0\0")
        refuses.append(0)
        with pytest.raises(EngineError, match="refuses KVM_SET_USER_MEMORY_REGION"):
            guest.machine.run(timeout=60)
        assert guest.finish().rax == 42


@pytest.mark.parametrize("which", [1, 2, 3], ids=["removal", "lower", "upper"])
def test_a_change_that_was_refused_is_made_later(refuses: list[int], which: int) -> None:
    """A vCPU's device over RAM takes the kernel three requests: whichever fails, the next run has it, and all the RAM.

    The first request of all is for the RAM as it was.
    """
    with Guest(LOADS) as guest:
        guest.memory.write(DATA + 0x1000, code64("""
            b8 2a 00 00 00  ; mov eax, 42
            f4              ; hlt
        """))  # fmt: skip
        start = guest.vcpu.registers
        guest.finish()
        guest.vcpu.mmio.attach(Recorder(7), DATA, 4)
        guest.vcpu.registers = start
        refuses.append(which)
        with pytest.raises(EngineError, match="refuses KVM_SET_USER_MEMORY_REGION"):
            guest.machine.run(timeout=60)
        assert guest.finish().rax == 7
        guest.set(rip=DATA + 0x1000)  # the kernel runs code from its own slots only
        assert guest.finish().rax == 42
