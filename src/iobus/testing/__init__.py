"""What tests of devices use. The top floor: it may use all of iobus, and nothing of iobus uses it.

`plugin.py` has the fixtures and marks that pytest knows once iobus is installed. Nothing is loaded before it is
asked for: pytest loads this package in each of its runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from iobus.replay import Difference
    from iobus.testing.bench import Bench
    from iobus.testing.guest import Guest, GuestError, GuestTimeoutError, KernelError, Result
    from iobus.testing.replaying import replay_device
    from iobus.testing.tidy import GuestWarning
    from iobus.testing.watchdog import DeviceTimeoutError

__all__ = [
    "Bench", "DeviceTimeoutError", "Difference", "Guest", "GuestError", "GuestTimeoutError", "GuestWarning",
    "KernelError", "Result", "replay_device",
]  # fmt: skip

_HOMES: Final = {
    "Bench": "iobus.testing.bench",
    "DeviceTimeoutError": "iobus.testing.watchdog",
    "Difference": "iobus.replay",
    "Guest": "iobus.testing.guest",
    "GuestError": "iobus.testing.guest",
    "GuestTimeoutError": "iobus.testing.guest",
    "GuestWarning": "iobus.testing.tidy",
    "KernelError": "iobus.testing.guest",
    "Result": "iobus.testing.guest",
    "replay_device": "iobus.testing.replaying",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
