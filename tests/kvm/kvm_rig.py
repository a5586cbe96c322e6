"""What the tests of the KVM engine share: small guests on it. They skip, with the reason, where KVM cannot be opened.

A KVM without the CPU's help (no VMX or SVM) runs most of them too; those that need a real CPU say so.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Final

import pytest
import rig

from iobus.engines.kvm import probe
from iobus.engines.kvm.engine import KvmEngine
from iobus.engines.kvm.vm import Vm
from iobus.exits import EngineError
from iobus.irq import DeliveryMode, Message

KICKS: Final = int(os.environ.get("IOBUS_TEST_KICKS", "10000"))
"""How often a test of a race tries; an emulated CPU sets it lower."""


@functools.cache
def why_not() -> str:
    """Say why there is no KVM here; "" if there is."""
    try:
        Vm().close()
    except EngineError as exc:
        return str(exc)
    return ""


needs_kvm = pytest.mark.skipif(bool(why_not()), reason=why_not())
needs_hardware = pytest.mark.skipif(bool(why_not() or probe.not_hardware()), reason=why_not() or probe.not_hardware())


def until(condition: Callable[[], object]) -> None:
    """Wait for it; a minute is far more than it takes on any machine."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.001)


def init(to: int) -> Message:
    """An INIT to the CPU of that APIC ID."""
    return Message(to, False, DeliveryMode.INIT, 0)


def startup(to: int, vector: int) -> Message:
    """A start-up message: in real mode at vector << 12."""
    return Message(to, False, DeliveryMode.STARTUP, vector)


def nmi(to: int) -> Message:
    """An NMI to the CPU of that APIC ID."""
    return Message(to, False, DeliveryMode.NMI, 0)


class _OnKvm(rig.Guest):
    def engine(self) -> KvmEngine:
        return KvmEngine()


class Guest(_OnKvm):
    """A guest in long mode."""


class SmpGuest(_OnKvm, rig.SmpGuest):
    """A guest in long mode with several vCPUs, each with its LAPIC in Python; all run from the first run on."""

    def start(self) -> None:
        super().start()
        for vcpu in self.vcpus[1:]:  # where their registers say, not where a start-up message would have them start
            vcpu.executor._waits_for_startup, vcpu.executor._vector = False, None  # type: ignore[attr-defined]


class RealModeGuest(_OnKvm, rig.RealModeGuest):
    """A guest in real mode."""


class ProtectedGuest(_OnKvm, rig.ProtectedGuest):
    """A guest in 32-bit protected mode."""
