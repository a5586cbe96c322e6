"""The command `iobus`: `boot`, `demo` and `map`. This file reads the arguments and turns ends into statuses.

Top floor: everything may be imported here, and nothing imports it. What a user does wrong comes as
`UsageError` (status 2), one line and no traceback; docs/command.md has the table of statuses.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version

from iobus.boot.debian import GuestUnavailableError
from iobus.boot.linux import BootError
from iobus.bus import DeviceError, IobusError, RegistrationError
from iobus.cli import addressmap, boot, demo
from iobus.cli.arguments import UsageError, megabytes
from iobus.clock import TimerError
from iobus.exits import Exit, HltExit, KickExit, MmioExit, PioExit, PowerOffExit, ResetExit, ShutdownExit, TimeoutExit

STATUS_ENGINE, STATUS_USAGE, STATUS_SHUTDOWN, STATUS_DEVICE = 1, 2, 3, 4
STATUS_TIMEOUT, STATUS_UNCLAIMED, STATUS_HALTED, STATUS_INTERRUPTED = 5, 6, 7, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], Exit | None] = options.run
    try:
        return _status(run(options))
    except (UsageError, BootError, GuestUnavailableError, RegistrationError) as exc:
        _say(str(exc))
        return STATUS_USAGE
    except (DeviceError, TimerError) as exc:
        _say(str(exc))
        if exc.__cause__ is not None:
            traceback.print_exception(exc.__cause__)
        return STATUS_DEVICE
    except KeyboardInterrupt:
        _say("interrupted")
        return STATUS_INTERRUPTED
    except BrokenPipeError:
        return STATUS_ENGINE
    except IobusError as exc:
        _say(str(exc))
        return STATUS_ENGINE


def _status(exit: Exit | None) -> int:
    match exit:
        case None | PowerOffExit() | ResetExit() | KickExit():
            return 0
        case ShutdownExit(rip=rip):
            _say(f"the guest stopped with a triple fault at rip {rip:#x}")
            return STATUS_SHUTDOWN
        case TimeoutExit(seconds=seconds):
            _say(f"stopped after the {seconds:g} seconds of --timeout")
            return STATUS_TIMEOUT
        case MmioExit() | PioExit():
            space = "address" if isinstance(exit, MmioExit) else "port"
            what = f"write of {exit.data:#x}" if exit.is_write else "read"
            _say(f"no device claims the guest's {exit.size}-byte {what} at {space} {exit.address:#x}")
            return STATUS_UNCLAIMED
        case HltExit():
            _say("the CPU halted with interrupts off: nothing can wake it")
            return STATUS_HALTED
        case _:
            _say(f"stopped: {exit}")
            return STATUS_ENGINE


def _say(line: str) -> None:
    print(f"iobus: {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="iobus", description="A virtual machine whose devices are Python objects.")
    parser.add_argument("--version", action="version", version=f"iobus {version('iobus')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Exit | None], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        sub.add_argument("--memory", type=megabytes, default=256 << 20, metavar="SIZE", help="RAM (256M)")
        return sub

    sub = command("boot", boot.run, "Boot a Linux guest; its serial console is the terminal, Ctrl-A X leaves.")
    sub.add_argument("--kernel", metavar="FILE", help="a bzImage (default: Debian's cloud kernel)")
    sub.add_argument("--initrd", metavar="FILE", help="an initrd (default: a BusyBox shell)")
    sub.add_argument("--append", default="", metavar="STRING", help="added to the kernel's command line")
    sub.add_argument("--no-reboot", action="store_true", help="leave when the guest resets the machine")
    boot.add_run_options(sub)

    sub = command("demo", demo.run, "Boot Debian's kernel with an example device, show the accesses, power off.")
    sub.add_argument("--timeout", type=float, default=120, metavar="SECONDS", help="stop after so long (120)")
    sub.add_argument("--engine", default="auto", metavar="NAME", help="auto or unicorn")

    sub = command("map", addressmap.run, "Print the address map with every region.")
    sub.add_argument("--device", action="append", default=[], metavar="SPEC", help="FILE.py:CLASS@ADDR[:LENGTH]")
    return parser
