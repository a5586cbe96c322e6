"""`iobus boot`, and what `iobus demo` shares with it: a guest's files, its boots, and its run."""

from __future__ import annotations

import argparse
import sys
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd
from iobus.boot.linux import LinuxKernel, e820, read_initrd
from iobus.cli.arguments import UsageError, attach_devices, make_pc
from iobus.cli.console import Console
from iobus.cli.trace import Trace
from iobus.exits import Exit, ResetExit
from iobus.pc import layout
from iobus.pc.pc import Pc

COMMAND_LINE = "console=ttyS0"

_SHELL = """\
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "BusyBox shell on iobus; poweroff -f ends it."
setsid cttyhack sh
poweroff -f
"""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a guest is run."""
    parser.add_argument("--engine", default="auto", metavar="NAME", help="auto or unicorn")
    parser.add_argument(
        "--device", action="append", default=[], metavar="SPEC",
        help="attach a device: FILE.py:CLASS@ADDR[:LENGTH][,NAME=VALUE...]",
    )  # fmt: skip
    parser.add_argument(
        "--unclaimed", choices=("ones", "stop"), default="ones",
        help="an access that no device claims: reads all ones, or stops",
    )  # fmt: skip
    parser.add_argument("--trace", nargs="?", const="-", metavar="FILE", help="show each access, or write it to FILE")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="stop the guest after so long")


@dataclass(frozen=True)
class Guest:
    """A kernel, its initrd and its command line."""

    kernel: LinuxKernel
    initrd: bytes
    command_line: str

    def enter(self, pc: Pc) -> None:
        """Put the guest into `pc`'s RAM and its boot CPU at the kernel's entry. Raises `BootError`."""
        memory = pc.machine.memory
        entry = self.kernel.load(
            memory, initrd=self.initrd, command_line=self.command_line,
            acpi_rsdp=layout.ACPI_TABLES, e820=e820(memory),
        )  # fmt: skip
        pc.machine.vcpus[0].registers = entry.registers()


def progress(line: str) -> None:
    """Say how a fetch goes on."""
    print(f"iobus: {line}", file=sys.stderr, flush=True)


def debian_kernel() -> LinuxKernel:
    """Return the cached or fetched cloud kernel. Raises `GuestUnavailableError`."""
    return LinuxKernel.read(debian.cloud_kernel(progress=progress))


def busybox(init_script: str) -> bytes:
    """Return an initrd of Debian's BusyBox that runs `init_script`. Raises `GuestUnavailableError`."""
    return busybox_initrd(debian.busybox(progress=progress).read_bytes(), init_script)


def run(options: argparse.Namespace) -> Exit:
    """Boot and run until the guest ends. Raises what docs/command.md lists as statuses."""
    if options.timeout is not None and options.timeout <= 0:
        raise UsageError(f"--timeout {options.timeout:g}: give seconds above 0")
    console = Console()
    pc = make_pc(options.memory, options.engine, console.show)
    with ExitStack() as stack:
        stack.callback(pc.machine.close)
        attach_devices(pc, options.device)
        kernel = LinuxKernel.read(options.kernel) if options.kernel else debian_kernel()
        initrd = read_initrd(options.initrd) if options.initrd else b"" if options.kernel else busybox(_SHELL)
        guest = Guest(kernel, initrd, f"{COMMAND_LINE} {options.append}".strip())
        if options.trace is not None:
            stack.enter_context(Trace(pc.machine, _trace_file(options.trace)))
        stack.enter_context(console.attached(pc))
        return run_guest(pc, guest, options.timeout, options.unclaimed, reboot=not options.no_reboot)


def run_guest(
    pc: Pc, guest: Guest, timeout: float | None, unclaimed: Literal["ones", "stop"] = "ones", *, reboot: bool
) -> Exit:
    """Boot `guest`, again after each reset if `reboot`, until it ends otherwise."""
    warnings.filterwarnings("once", category=RuntimeWarning, module="iobus")
    guest.enter(pc)
    while True:
        exit = pc.machine.run(timeout=timeout, unclaimed=unclaimed)
        if not (reboot and isinstance(exit, ResetExit)):
            return exit
        pc.machine.memory.clear()
        pc.reset()
        guest.enter(pc)


def _trace_file(name: str) -> Path | None:
    if name == "-":
        return None
    path = Path(name)
    if not path.parent.is_dir():
        raise UsageError(f"--trace {name}: there is no directory {path.parent}")
    return path
