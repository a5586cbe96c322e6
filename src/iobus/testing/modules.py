"""The modules of a kernel's package: where each is, which others it needs, and how parameters are written.

Beside `guest.py`. A package has no list of dependencies (depmod makes it when the package is installed); each module
names what it needs in its section .modinfo, as `depends=a,b`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from iobus.bus import IobusError


class NoSuchModuleError(IobusError):
    """A module that the kernel's package has not."""


@functools.cache
def module_files(kernel: Path) -> Mapping[str, Path]:
    """Return the modules in the package of the vmlinuz `kernel` by name, `-` written `_`. Built-in ones have none."""
    tree = kernel.parent.parent / "lib" / "modules"
    files = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    for listed in tree.glob("*/modules.builtin"):
        for line in listed.read_text().splitlines():
            files.setdefault(Path(line).stem.replace("-", "_"), Path())
    return files


def dependencies(name: str, files: Mapping[str, Path]) -> list[str]:
    """Return the module `name` and all it needs, in the order to load them, without built-in ones."""
    order: list[str] = []

    def visit(module: str) -> None:
        if module not in files:
            raise NoSuchModuleError(f"the kernel's package has no module {module!r}")
        if module in order or files[module] == Path():
            return
        for needed in _depends(files[module]):
            visit(needed)
        order.append(module)

    visit(name.replace("-", "_"))
    return order


def _depends(file: Path) -> list[str]:
    data = file.read_bytes()
    at = data.find(b"\0depends=")
    if at < 0:
        return []
    words = data[at + 9 : data.index(b"\0", at + 1)].decode()
    return [word.replace("-", "_") for word in words.split(",") if word]


def parameter(value: object) -> str:
    """A module parameter's value: lists with commas, truth as y and n."""
    if isinstance(value, bool):
        return "y" if value else "n"
    if isinstance(value, list | tuple):
        return ",".join(parameter(item) for item in value)
    return hex(value) if isinstance(value, int) else str(value)
