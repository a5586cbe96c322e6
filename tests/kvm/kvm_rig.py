"""What the tests of the KVM engine share: small guests on it. They skip, with the reason, where KVM cannot be opened.

A KVM without the CPU's help (no VMX or SVM) runs most of them too; those that need a real CPU say so.
"""

from __future__ import annotations

import functools
import os
from typing import Final

import pytest
import rig

from iobus.engines.kvm import probe
from iobus.engines.kvm.engine import KvmEngine
from iobus.engines.kvm.vm import Vm
from iobus.exits import EngineError

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


class _OnKvm(rig.Guest):
    def engine(self) -> KvmEngine:
        return KvmEngine()


class Guest(_OnKvm):
    """A guest in long mode."""


class RealModeGuest(_OnKvm, rig.RealModeGuest):
    """A guest in real mode."""


class ProtectedGuest(_OnKvm, rig.ProtectedGuest):
    """A guest in 32-bit protected mode."""
