"""The command `iobus`: `main`, its arguments, and what every ending has in common.

One file a subcommand: boot.py, run.py, demo.py, addressmap.py; they are imported when asked for, so that a
mistyped option is answered at once. What users read of it is docs/command.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Never

from iobus.boot.debian import GuestUnavailableError
from iobus.boot.handover import BootError
from iobus.boot.initrd import InitrdError
from iobus.bus import DeviceError, IobusError
from iobus.cli import values
from iobus.cli.console import Terminated, signals_raise
from iobus.cli.devices import FORM, DeviceSpec
from iobus.cli.ending import LAST_RESORT
from iobus.cli.outcome import Status, UsageError, describe_error, printing
from iobus.engines.names import ENGINES, IRQCHIPS
from iobus.errors import CallbackError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    status: int
    try:
        with LAST_RESORT, signals_raise():
            with printing():  # --help, --version
                options = _parser().parse_args(arguments)
            status, what = options.run(options)
    except (UsageError, BootError, InitrdError, GuestUnavailableError) as exc:
        status, what = Status.BAD_ARGUMENTS, str(exc)
    except (DeviceError, CallbackError) as exc:
        status, what = Status.DEVICE_ERROR, describe_error(exc)
    except IobusError as exc:
        status, what = Status.FAILED, str(exc)
    except KeyboardInterrupt:
        status, what = Status.INTERRUPTED, "interrupted"
    except Terminated as exc:
        return 128 + exc.number
    if what:
        _say(what)
    return int(status)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"iobus: {text}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def print_help(self, file: Any = None) -> None:
        """As argparse, which keeps quiet where it cannot be written."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> Never:
        """One line, without the usage."""
        raise UsageError(f"{message}; see {self.prog} --help")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"iobus {importlib.metadata.version('iobus')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="iobus", description="A virtual machine monitor whose every device is a Python object.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    boot = commands.add_parser("boot", help="boot a guest", description="Boot a guest; Ctrl-A X leaves its console.")
    boot.set_defaults(run=_boot)
    boot.add_argument("--kernel", metavar="FILE", type=Path, help="a Linux bzImage (default: one from Debian)")
    boot.add_argument("--initrd", metavar="FILE", type=Path, help="the initial RAM disk")

    run = commands.add_parser(
        "run",
        help="run a bare-metal image, by what it is",
        description="Run a bare-metal image by what the file is; Ctrl-A X leaves its console.",
    )
    run.set_defaults(run=_run)
    run.add_argument("image", metavar="IMAGE", type=Path, nargs="?", help="bzImage, Multiboot 1 or 2, PVH or flat")
    run.add_argument(
        "--module",
        metavar="FILE[,CMDLINE]",
        action="append",
        default=[],
        help="load a file for the guest, such as an initrd; may be given more than once",
    )
    run.add_argument("--firmware", metavar="FILE", type=Path, help="a ROM such as SeaBIOS's bios.bin, and no IMAGE")
    run.add_argument("--at", metavar="ADDR", type=values.address, help="IMAGE is a flat binary for this address")

    for command in (boot, run):
        command.add_argument(
            "--display", choices=("none", "text"), default="none", help="draw the guest's text screen in the terminal"
        )
        command.add_argument("--append", metavar="STRING", default="", help="added to the kernel's command line")
        command.add_argument("--engine", choices=ENGINES, default="auto", help="what executes the guest")
        command.add_argument(
            "--irqchip",
            choices=IRQCHIPS,
            help="where the interrupt controllers are; KVM has all (default: user)",
        )
        command.add_argument("--cpus", metavar="N", type=values.cpus, default=1, help="vCPUs (default: 1)")
        command.add_argument(
            "--unclaimed",
            choices=("ones", "stop"),
            default="ones",
            help="an access that no device claims: reads as all ones (the default), or stops the guest",
        )
        command.add_argument(
            "--trace", metavar="FILE", nargs="?", const="", help="show each access, on standard error or in FILE"
        )
        command.add_argument("--timeout", metavar="SECONDS", type=values.seconds, help="stop the guest after so long")
        command.add_argument("--no-reboot", action="store_true", help="leave when the guest resets the machine")

    demo = commands.add_parser(
        "demo", help="boot Linux with an example device", description="Boot Linux with an example device."
    )
    demo.set_defaults(run=_demo)

    engines = commands.add_parser(
        "engines", help="list the engines", description="Say which engines are here, and which one auto takes."
    )
    engines.set_defaults(run=_engines)

    map_ = commands.add_parser("map", help="print the address map", description="Print every region, RAM included.")
    map_.set_defaults(run=_map)
    map_.add_argument("--svg", metavar="FILE", type=Path, help="draw it in FILE instead")

    new = commands.add_parser(
        "new", help="write a device to begin with", description="Write a device to fill in, and a test of it."
    )
    new.set_defaults(run=_new)
    new.add_argument("name", metavar="NAME", nargs="?", help="of its class (default, with --from: the map's name)")
    new.add_argument(
        "--from", dest="source", metavar="FILE", type=Path, help="its registers: a .rdl, .svd or IP-XACT .xml file"
    )
    new.add_argument("--top", metavar="WHICH", help="which addrmap, peripheral or memory map of FILE")
    new.add_argument("--output", metavar="FILE.py", type=Path, help="where to (default: by the name, here)")

    replay = commands.add_parser(
        "replay", help="replay a trace against a device", description="Make a trace's accesses to a device again."
    )
    replay.set_defaults(run=_replay)
    replay.add_argument("trace", metavar="TRACE.jsonl", type=Path, help="what iobus boot --trace TRACE.jsonl wrote")
    replay.add_argument("--device", metavar="SPEC", required=True, help=f"the device: {FORM}")
    replay.add_argument("--region", metavar="NAME[@BASE]", help="the device in the trace (default: by its name now)")
    replay.add_argument("--test", metavar="FILE", type=Path, help="write a test for pytest that replays, instead")

    top = commands.add_parser(
        "top", help="watch a running guest's accesses", description="Watch what a running guest asks of its devices."
    )
    top.set_defaults(run=_top)
    top.add_argument("pid", metavar="PID", type=int, nargs="?", help="of its iobus boot (default: the only one)")

    report = commands.add_parser(
        "report", help="make an HTML report of a trace", description="Make one HTML page of a run's trace."
    )
    report.set_defaults(run=_report)
    report.add_argument("trace", metavar="TRACE.jsonl", type=Path, help="what iobus boot --trace TRACE.jsonl wrote")
    report.add_argument("--output", metavar="FILE", type=Path, default=Path("report.html"), help="the page to write")

    for command in (boot, run, map_):
        command.add_argument(
            "--memory", metavar="SIZE", type=values.memory_size, default=256 << 20, help="RAM (default: 256M)"
        )
        command.add_argument(
            "--device", metavar="SPEC", action="append", default=[], help=f"put a device on the bus: {FORM}"
        )
    return parser


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    """The options that `boot` and `run` share."""
    return {
        "append": options.append,
        "memory": options.memory,
        "engine": options.engine,
        "devices": [DeviceSpec.parse(text) for text in options.device],
        "unclaimed": options.unclaimed,
        "trace": options.trace,
        "timeout": options.timeout,
        "reboot": not options.no_reboot,
        "display": options.display,
        "cpus": options.cpus,
        "irqchip": options.irqchip,
    }


def _boot(options: argparse.Namespace) -> tuple[int, str]:
    from iobus.cli.boot import BootOptions, boot

    return boot(BootOptions(kernel=options.kernel, initrd=options.initrd, **_machine(options)))


def _run(options: argparse.Namespace) -> tuple[int, str]:
    from iobus.cli.run import RunOptions, run

    return run(
        RunOptions(
            image=options.image,
            modules=options.module,
            at=options.at,
            firmware=options.firmware,
            **_machine(options),
        )
    )


def _demo(_: argparse.Namespace) -> tuple[int, str]:
    from iobus.cli.demo import demo

    return demo()


def _new(options: argparse.Namespace) -> tuple[int, str]:
    from iobus.cli.new import NewOptions, new

    return new(NewOptions(options.name, options.source, options.top, options.output))


def _replay(options: argparse.Namespace) -> tuple[int, str]:
    from iobus.cli.replay import replay_trace, write_test

    spec = DeviceSpec.parse(options.device)
    if options.test is not None:
        return write_test(options.trace, spec, options.region, options.test)
    return replay_trace(options.trace, spec, options.region)


def _top(options: argparse.Namespace) -> tuple[int, str]:
    from iobus.cli.top import top

    return top(options.pid)


def _report(options: argparse.Namespace) -> tuple[int, str]:
    from iobus.cli.report import write_report

    return write_report(options.trace, options.output)


def _engines(_: argparse.Namespace) -> tuple[int, str]:
    from iobus.cli.engines import print_engines

    print_engines()
    return Status.OK, ""


def _map(options: argparse.Namespace) -> tuple[int, str]:
    from iobus.cli.addressmap import print_map

    print_map(memory=options.memory, devices=[DeviceSpec.parse(text) for text in options.device], svg=options.svg)
    return Status.OK, ""
