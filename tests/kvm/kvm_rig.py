"""What the tests of the KVM engine share: small guests on it. They skip, with the reason, where KVM cannot be opened.

A page-table-based KVM (no VMX or SVM in the CPU) runs them too, so `--engine auto`'s stricter question is not asked.
"""

from __future__ import annotations

import functools
import os
from typing import Any, Final

import guest_rig
import pytest

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


class Guest(guest_rig.Guest):
    """A guest in long mode."""

    def __init__(self, program: bytes, **options: Any) -> None:
        super().__init__(program, engine=KvmEngine(), **options)


class RealModeGuest(guest_rig.RealModeGuest):
    """A guest in real mode."""

    def __init__(self, program: bytes, **options: Any) -> None:
        super().__init__(program, engine=KvmEngine(), **options)


class ProtectedModeGuest(guest_rig.ProtectedModeGuest):
    """A guest in 32-bit protected mode."""

    def __init__(self, program: bytes, **options: Any) -> None:
        super().__init__(program, engine=KvmEngine(), **options)
