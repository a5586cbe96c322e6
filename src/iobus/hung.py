"""A device that does not come back: what it was asked, where it is, and how long a machine that is to stop waits.

Beside `machine.py`. An access costs nothing for this: which one is under way is read from the threads' stacks once
somebody asks. The engines and `smp.py` wait by `comes_back`; the command and the tests' watchdog say what they find.
"""

from __future__ import annotations

import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from iobus.claims import Claim
from iobus.clock import Clock
from iobus.errors import access_text

if TYPE_CHECKING:
    from iobus.bus import Region
    from iobus.machine import Machine

GRACE: Final = 5.0
"""Seconds that a machine has to come to a clean stop; a device that takes longer hangs."""

SIGNAL_CHECK: Final = 0.2
"""Seconds that a wait in the main thread lasts at most: a signal just before it does not end it, a time-out does."""

_ACCESS: Final = {"read": 2, "write": 3, "in_range": 2}
"""A device's methods, and how many arguments they have."""
_LIBRARY: Final = (sysconfig.get_path("stdlib") + "/", "<frozen ")


def comes_back(machine: Machine, wait: Callable[[float], bool]) -> bool:
    """Wait until a run of `machine`, which was told to stop, has stopped: `wait(seconds)` says whether it has.

    After `GRACE`, or when a second signal's handler raises, the machine is `hung`; return whether it is not.
    """
    if machine.hung:
        return False
    end = time.monotonic() + GRACE
    try:
        while not wait(SIGNAL_CHECK):
            if time.monotonic() >= end:
                machine.hung = True
                return False
    except BaseException:
        machine.hung = True
        raise
    return True


def find(machine: Machine) -> str | None:
    """Return what a device of `machine` is asked now and where it is at; None where none is asked anything."""
    for vcpu in machine.vcpus:
        for path in (vcpu.mmio_path, vcpu.pio_path):
            if (asked := path.under_way) is not None:
                return f"{_access(asked.region, asked.address, asked.size, asked.value)}, {_at(asked.thread)}"
    devices = {id(device): device for device in machine.devices()}
    owner = machine.lock.owner
    threads = sorted(sys._current_frames(), key=lambda thread: thread != owner)  # others may only wait for it
    for thread in threads:
        for frame in reversed(list(_stack(thread))):
            if what := _asked(machine, devices, frame):
                return f"{what}, {_at(thread)}"
    return f"a device's callback, {_at(owner)}" if owner in threads else None


def where(thread: int) -> str:
    """Return the file, line and function that a thread is in: the innermost that is not Python's own library's."""
    frames = list(_stack(thread))
    if not frames:
        return "an unknown place"
    frame = next((frame for frame in frames if not _is_library(frame.f_code.co_filename)), frames[0])
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"


def _at(thread: int) -> str:
    return f"at {where(thread)}"


def _is_library(file: str) -> bool:
    return file.startswith(_LIBRARY) and "-packages/" not in file


def _stack(thread: int) -> Iterator[FrameType]:
    """Yield the frames of a thread, the innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _asked(machine: Machine, devices: dict[int, object], frame: FrameType) -> str:
    """Return what a device is asked by a call whose frame this is; empty where it is no such call."""
    code = frame.f_code
    if code is Clock.run_due.__code__:
        timer = frame.f_locals.get("timer")
        return f"call_soon({frame.f_locals.get('callback')!r})" if timer is None else f"timer {timer.name!r}"
    names = code.co_varnames[: code.co_argcount]
    if len(names) != _ACCESS.get(code.co_name, -1) + 1:
        return ""
    known: dict[str, Any] = frame.f_locals
    device = devices.get(id(known.get(names[0])))
    if device is None:
        return ""
    offset, size, value = known.get(names[1]), known.get(names[2]), known.get(names[3]) if len(names) > 3 else None
    region = _region(machine, device, frame)
    if region is None or not isinstance(offset, int) or not isinstance(size, int):
        return type(device).__name__
    return _access(region, region.base + offset, size, value)


def _region(machine: Machine, device: object, frame: FrameType) -> Region | None:
    """By which of its regions a device is asked: its caller's claim, else the first."""
    claim = frame.f_back.f_locals.get("claim") if frame.f_back is not None else None
    if isinstance(claim, Claim) and claim.region.device is device:
        return claim.region
    regions = (region for bus in machine.buses for region in bus.regions)
    return next((region for region in regions if region.device is device), None)


def _access(region: Region, address: int, size: int, value: int | None) -> str:
    return access_text(region.device, region.name, address, address - region.base, size, value)
