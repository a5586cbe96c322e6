"""`iobus run`: a bare-metal image, booted by what the file is, in a PC with an emulator's conveniences.

Stands beside `boot.py`, whose options and session it shares. What each kind of image gets and how it is entered is
docs/guests.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iobus.boot.firmware import read_firmware
from iobus.boot.handover import Handover, Image, Module, e820
from iobus.boot.image import read_image, read_module
from iobus.cli.boot import Guest, MachineOptions, session
from iobus.cli.console import Console
from iobus.cli.outcome import UsageError
from iobus.pc import acpi, host_interface, layout
from iobus.pc.pc import Pc


@dataclass(frozen=True, kw_only=True)
class RunOptions(MachineOptions):
    """The options of `iobus run`."""

    image: Path | None
    modules: Sequence[str]
    """Each FILE[,CMDLINE]."""
    at: int | None
    firmware: Path | None


@dataclass(frozen=True, slots=True)
class ImageGuest:
    """An image, with what it is handed."""

    image: Image
    modules: Sequence[Module]
    command_line: str

    def load(self, pc: Pc) -> None:
        """As `Guest.load`."""
        memory = pc.machine.memory
        handover = Handover(
            e820=e820(memory),
            command_line=self.command_line,
            modules=self.modules,
            acpi_rsdp=memory.read(layout.ACPI_TABLES, acpi.RSDP_SIZE),
            acpi_rsdp_address=layout.ACPI_TABLES,
        )
        pc.machine.vcpus[0].registers = self.image.load(memory, handover)


class FirmwareGuest:
    """A ROM that the PC was made with: the CPU is at its reset vector."""

    def load(self, pc: Pc) -> None:
        """As `Guest.load`: nothing is to be done."""


def run(options: RunOptions) -> tuple[int, str]:
    """Run by `options`; return the status and a sentence for standard error. Raises `IobusError`."""
    guest: Guest
    rom = b""
    if options.firmware is not None:
        given = {"IMAGE": options.image, "--module": options.modules or None, "--append": options.append or None}
        for what, value in (given | {"--at": options.at}).items():
            if value is not None:
                raise UsageError(f"--firmware {options.firmware} boots by itself; leave {what} out")
        rom, guest = read_firmware(options.firmware), FirmwareGuest()
    elif options.image is None:
        raise UsageError("iobus run needs an IMAGE or --firmware FILE; see iobus run --help")
    else:
        image = read_image(options.image, at=options.at)
        guest = ImageGuest(image, [read_module(text) for text in options.modules], options.append)

    def prepare(pc: Pc, console: Console) -> Guest:
        host_interface.attach(pc, console.log)
        return guest

    return session(options, prepare, firmware=rom)
