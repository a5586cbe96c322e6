"""How the command ends: its exit statuses, what is said with them, and bad input as one exception.

The ground floor of `cli/`. `docs/command.md` has the table of statuses.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from enum import IntEnum
from types import TracebackType

from iobus import bus, path, widths
from iobus.bus import DeviceError, IobusError
from iobus.errors import CallbackError
from iobus.exits import (
    DebugExit,
    Exit,
    HltExit,
    KickExit,
    MmioExit,
    PioExit,
    PowerOffExit,
    ResetExit,
    ShutdownExit,
    TimeoutExit,
)
from iobus.vcpu import VCPU


class Status(IntEnum):
    """The command's exit statuses. A signal's is 128 and its number, as in a shell."""

    OK = 0
    FAILED = 1
    BAD_ARGUMENTS = 2
    TRIPLE_FAULT = 3
    DEVICE_ERROR = 4
    TIMEOUT = 5
    UNCLAIMED = 6
    HALTED = 7
    INTERRUPTED = 130


class UsageError(IobusError):
    """Bad input: one line that names the value and what would be right."""


class LostOutputError(IobusError):
    """Standard output cannot be written: it says why."""


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Within, what is said of a failing file is said of standard output. Raises `LostOutputError`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as exc:
        with contextlib.suppress(OSError):  # what is buffered can go nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise LostOutputError(describe_lost(exc)[1]) from exc


def describe(exit: Exit, vcpu: VCPU) -> tuple[int, str]:
    """Return the status of a run's end, and a sentence on it where it is not the guest's own wish."""
    match exit:
        case PowerOffExit() | ResetExit() | KickExit():
            return Status.OK, ""
        case DebugExit(code):
            return (code << 1 | 1) & 0xFF, ""
        case ShutdownExit(rip):
            return Status.TRIPLE_FAULT, f"triple fault at rip {rip:#x}: the CPU shut down"
        case TimeoutExit(seconds):
            return Status.TIMEOUT, f"the guest was stopped: the {seconds:g} seconds of --timeout have passed"
        case HltExit():
            return Status.HALTED, f"the CPU halted with interrupts off, before rip {vcpu.registers.rip:#x}, for ever"
        case MmioExit() | PioExit():
            space = "address" if isinstance(exit, MmioExit) else "port"
            access = f"write of {exit.data:#x} to" if exit.is_write else "read of"
            return Status.UNCLAIMED, f"no device claims a {exit.size}-byte {access} {space} {exit.address:#x}"


def describe_lost(error: OSError) -> tuple[Status, str]:
    """Return the status and the sentence for standard output's having failed."""
    return Status.FAILED, f"standard output cannot be written: {error.strerror}"


def describe_error(error: DeviceError | CallbackError) -> str:
    """Return the error's sentence, and below it the device's own traceback where there is one."""
    cause = error.__cause__
    if cause is None:
        return str(error)
    trace = cause.__traceback__
    while _is_of_the_bus(trace) and trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    link: BaseException = cause
    while (context := link.__context__) is not None:
        if _is_of_the_bus(context.__traceback__):  # a lookup's own, under which the device was called
            link.__context__ = None
        else:
            link = context
    return f"{error}\n" + "".join(traceback.format_exception(cause.with_traceback(trace))).rstrip()


def _is_of_the_bus(trace: TracebackType | None) -> bool:
    return trace is not None and trace.tb_frame.f_code.co_filename in (bus.__file__, path.__file__, widths.__file__)
