"""What kind of image a file is, by what is in it: `read_image`. Stands above all loaders of `boot`.

The order matters where a file is of several kinds: a Linux kernel in the bzImage format first; then Multiboot 2 and
Multiboot 1, whose headers tell a loader more than ELF does; then PVH. A flat binary is what its user calls so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from iobus.boot import linux, multiboot, multiboot2, pvh
from iobus.boot.elf import MAGIC as ELF_MAGIC
from iobus.boot.flat import FlatImage
from iobus.boot.handover import BootError, Handover, Image, Module, decompressed, read_file
from iobus.boot.linux import LinuxKernel
from iobus.cpu_registers import Registers
from iobus.memory import Memory

KINDS: Final = "a Linux bzImage, a Multiboot 1 or 2 image, or an ELF file with a PVH entry"


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """A bzImage as one of several kinds of image: its module, if any, is the initrd."""

    path: Path
    kernel: LinuxKernel

    @classmethod
    def read(cls, data: bytes, path: Path) -> Self:
        """Check an image. Raises `BootError`."""
        return cls(path, LinuxKernel.parse(data, path))

    def load(self, memory: Memory, handover: Handover) -> Registers:
        """As `Image.load`."""
        if len(handover.modules) > 1:
            names = ", ".join(module.name for module in handover.modules)
            raise BootError(f"kernel {self.path} takes one module, its initrd, and was given {names}")
        for module in handover.modules:
            if module.command_line:
                raise BootError(
                    f"kernel {self.path} takes no command line for its initrd {module.name} "
                    f"({module.command_line!r}); give the kernel's by --append"
                )
        return self.kernel.load(
            memory,
            initrd=handover.modules[0].data if handover.modules else b"",
            command_line=handover.command_line,
            acpi_rsdp=handover.acpi_rsdp_address,
            e820=handover.e820,
        ).registers()


_READERS: Final[tuple[tuple[Callable[[bytes], bool], Callable[[bytes, Path], Image]], ...]] = (
    (linux.is_bzimage, LinuxImage.read),
    (lambda data: multiboot2.find_header(data) is not None, multiboot2.Multiboot2Image.read),
    (lambda data: multiboot.find_header(data) is not None, multiboot.MultibootImage.read),
    (lambda data: data.startswith(ELF_MAGIC), pvh.PvhImage.read),
)


def read_image(path: str | os.PathLike[str], *, at: int | None = None) -> Image:
    """Read an image and find out how it boots; with `at`, as a flat binary for that address.

    A gzip file is taken for what is in it, except by `at`. Raises `BootError`.
    """
    path = Path(path)
    data = read_file(path, "image")
    if at is not None:
        return FlatImage.read(data, path, at)
    data = decompressed(data, path)
    for fits, read in _READERS:
        if fits(data):
            return read(data, path)
    raise BootError(
        f"image {path} begins with {data[:4]!r} and is no {KINDS.removeprefix('a ')}; "
        "give --at ADDRESS for a flat binary, --firmware for a ROM"
    )


def read_module(text: str) -> Module:
    """Read a module by FILE[,COMMAND LINE]. Raises `BootError`."""
    name, _, command_line = text.partition(",")
    return Module(Path(name).name, read_file(name, "module"), command_line)
