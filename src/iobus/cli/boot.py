"""`iobus boot`: a PC, its devices and a guest from the command's options, run until it ends.

Above `pc/`, `boot/` and `engines/`. `LinuxGuest` is what is booted; `session` makes the PC and runs a guest in it on
the user's console, `run` boots a guest again after each reset. `run.py` and `demo.py` use them too.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from iobus.boot import debian
from iobus.boot.handover import e820
from iobus.boot.initrd import busybox_initrd
from iobus.boot.linux import LinuxKernel, read_initrd
from iobus.cli.console import Console
from iobus.cli.devices import DeviceSpec, attach_devices
from iobus.cli.display import TextDisplay
from iobus.cli.ending import LAST_RESORT
from iobus.cli.monitor import Monitor
from iobus.cli.outcome import Status, UsageError, describe, describe_lost
from iobus.cli.trace import tracing
from iobus.engines import choose
from iobus.engines.names import Placement
from iobus.exits import Exit, ResetExit, TimeoutExit
from iobus.machine import Unclaimed
from iobus.memory import HostMemoryError
from iobus.pc import layout
from iobus.pc.pc import Pc

DISPLAYS = ("none", "text")
COMMAND_LINE = "console=ttyS0"
TEXT_COMMAND_LINE = f"{COMMAND_LINE} console=tty0"
"""With the display: the last console is the one that user space gets."""

SHELL_INIT = """\
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo
echo "A BusyBox shell; exit powers off."
setsid cttyhack sh
stty sane  # waits until all is on the console
poweroff -f
"""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """The options of every command that runs a guest."""

    append: str
    memory: int
    engine: str
    devices: Sequence[DeviceSpec]
    unclaimed: Unclaimed
    trace: str | None
    """A file's name; "" for standard error, None for no trace."""
    timeout: float | None
    reboot: bool
    display: str
    """One of `DISPLAYS`."""
    cpus: int
    irqchip: Placement | None
    """Where KVM's interrupt controllers are; None for its default."""


@dataclass(frozen=True, kw_only=True)
class BootOptions(MachineOptions):
    """The options of `iobus boot`."""

    kernel: Path | None
    initrd: Path | None


class Guest(Protocol):
    """What is booted: it can be loaded again after a reset."""

    def load(self, pc: Pc) -> None:
        """Write the guest into RAM and put the first vCPU at its entry. Raises `BootError`."""


@dataclass(frozen=True, slots=True)
class LinuxGuest:
    """A kernel with its initrd."""

    kernel: LinuxKernel
    initrd: bytes
    command_line: str

    def load(self, pc: Pc) -> None:
        """As `Guest.load`."""
        memory = pc.machine.memory
        entry = self.kernel.load(
            memory,
            initrd=self.initrd,
            command_line=self.command_line,
            acpi_rsdp=layout.ACPI_TABLES,
            e820=e820(memory),
        )
        pc.machine.vcpus[0].registers = entry.registers()


def boot(options: BootOptions) -> tuple[int, str]:
    """Boot by `options`; return the status and a sentence for standard error. Raises `IobusError`."""
    kernel = None if options.kernel is None else LinuxKernel.read(options.kernel)
    initrd = None if options.initrd is None else read_initrd(options.initrd)

    def prepare(pc: Pc, console: Console) -> Guest:
        data = initrd
        if data is None:
            data = shell_initrd(console.say) if kernel is None else b""
        linux = kernel or LinuxKernel.read(debian.cloud_kernel(progress=progress_to(console.say)))
        command_line = TEXT_COMMAND_LINE if options.display == "text" else COMMAND_LINE
        return LinuxGuest(linux, data, f"{command_line} {options.append}".rstrip())

    return session(options, prepare)


def session(
    options: MachineOptions, prepare: Callable[[Pc, Console], Guest], *, firmware: bytes = b""
) -> tuple[int, str]:
    """Run a guest on the console; return the status and a sentence for standard error. Raises `IobusError`.

    `prepare` gets the PC with the user's devices on it, and may attach more.
    """
    console = TextDisplay() if options.display == "text" else Console()
    with make_pc(
        options.memory, options.engine, console.output, console.say,
        cpus=options.cpus, irqchip=options.irqchip, firmware=firmware,
    ) as pc:  # fmt: skip
        attach_devices(pc, options.devices)
        guest = prepare(pc, console)
        guest.load(pc)
        with Monitor(pc, console.say), tracing(pc.machine, options.trace, console.say), console.open(pc):
            exit = run(
                pc, guest,
                timeout=options.timeout, unclaimed=options.unclaimed, reboot=options.reboot,
                stopped=lambda: console.closed,
            )  # fmt: skip
        if console.lost is not None:
            return describe_lost(console.lost)
        if console.left or exit is None:
            return Status.OK, ""
        return describe(exit, pc.machine.vcpus[0])


def run(
    pc: Pc,
    guest: Guest,
    *,
    timeout: float | None = None,
    unclaimed: Unclaimed = "ones",
    reboot: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> Exit | None:
    """Run the loaded guest to its end, loading it anew after each reset if `reboot`.

    Return why it ended; None when `stopped` says so. `timeout` in seconds is for all of it.
    """
    end = None if timeout is None else time.monotonic() + timeout
    if timeout is not None:
        LAST_RESORT.ask(Status.DEVICE_ERROR, after=timeout)
    while not stopped():
        left = None if end is None else max(0.0, end - time.monotonic())
        exit = pc.machine.run(timeout=left, unclaimed=unclaimed)
        if isinstance(exit, TimeoutExit) and timeout is not None:
            return TimeoutExit(timeout)
        if not isinstance(exit, ResetExit) or not reboot:
            return exit
        pc.reset()
        guest.load(pc)
    return None


@contextlib.contextmanager
def make_pc(
    memory: int,
    engine: str,
    output: Callable[[bytes], None],
    say: Say,
    *,
    cpus: int = 1,
    irqchip: Placement | None = None,
    firmware: bytes = b"",
) -> Iterator[Pc]:
    """Make a PC on the named engine, and close it in the end. Raises `UsageError`, `EngineError`."""
    cpu = choose.make(engine, irqchip)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of the fallback: said below
            pc = Pc(cpu, memory=memory, console=output, cpus=cpus, firmware=firmware)
    except (ValueError, HostMemoryError) as exc:
        cpu.close()
        raise UsageError(f"--memory: {exc}") from None
    try:
        if caveat := choose.caveat(cpu):
            say(f"iobus: {caveat}")
        LAST_RESORT.machine = pc.machine
        yield pc
    finally:
        pc.machine.close()


def shell_initrd(say: Say) -> bytes:
    """Return an initrd that ends in a BusyBox shell. Raises `GuestUnavailableError`."""
    return busybox_initrd(debian.busybox(progress=progress_to(say)).read_bytes(), SHELL_INIT)


def progress_to(say: Say) -> debian.Progress:
    """Return what tells `say` of a guest's fetching."""
    return lambda line: say(f"iobus: {line}")
