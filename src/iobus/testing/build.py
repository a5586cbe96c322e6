"""A kernel module built from its source, for tests of drivers: against the guest's own kernel, without root.

Beside `guest.py`. Debian's packages of headers and kbuild are fetched as guests are (`iobus.boot.debian`); the
compiler and make are the host's. What was built is kept in the cache, by all that it was built from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from iobus.boot.debian import GuestUnavailableError, cache_directory, kernel_headers
from iobus.bus import IobusError


class ModuleBuildError(IobusError):
    """A module that does not compile; the message is the compiler's."""


def build_module(source: str | Path, kernel: Path) -> Path:
    """Build the kernel module of one C file, which may include headers beside it; return its .ko.

    `kernel` is a vmlinuz of `iobus.boot.debian`. Raises `ModuleBuildError`, and `GuestUnavailableError` where headers,
    make or a compiler are missing.
    """
    source = Path(source).absolute()
    headers = kernel_headers(kernel)
    compiler = next((found for name in _compilers(headers) if (found := shutil.which(name))), None)
    for tool, what in ((compiler, "gcc"), (shutil.which("make"), "make")):
        if tool is None:
            raise GuestUnavailableError(
                f"this machine has no {what}, with which {source.name} is built; type: apt-get install {what}"
            )
    parts = [source, *sorted(source.parent.glob("*.h"))]
    key = hashlib.sha256(f"{kernel.name} {source.stem} {compiler}".encode())
    for part in parts:
        key.update(hashlib.sha256(part.read_bytes()).digest())
    module = cache_directory() / "modules" / key.hexdigest()[:16] / f"{source.stem}.ko"
    if not module.is_file():
        module.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=module.parent) as place:
            for part in parts:
                shutil.copy(part, place)
            _make(Path(place), source.stem, headers, kernel.name.removeprefix("vmlinuz-"), str(compiler))
            Path(place, module.name).replace(module)
    return module


def _make(place: Path, name: str, headers: Path, release: str, compiler: str) -> None:
    sources = headers / "usr" / "src"
    objects = sources / f"linux-headers-{release}"
    common = next(sources.glob("linux-headers-*-common"))
    (place / "Makefile").write_text(f"obj-m := {name}.o\n")
    libraries = ":".join(str(path) for path in headers.glob("usr/lib/*-linux-gnu*"))
    done = subprocess.run(
        # Not the Makefile of the headers: that names the others by an absolute path.
        ["make", "-s", "-C", objects, "-f", common / "Makefile", f"M={place}", f"CC={compiler}", "modules"],
        env={**os.environ, "LC_ALL": "C", "LD_LIBRARY_PATH": libraries, "MAKEFLAGS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = done.stderr.replace(f"{place}/", "").replace(f"{sources}/", "")
        lines = [line for line in said.splitlines() if not line.startswith("make")]
        raise ModuleBuildError(f"{name}.c does not build for {release}:\n" + "\n".join(lines))


def _compilers(headers: Path) -> list[str]:
    """The names of the compiler that built the kernel, by its major version, and of any other."""
    for config in headers.glob("usr/src/linux-headers-*/.kernelvariables"):
        for word in config.read_text().split():
            if "gcc-" in word:
                return [f"gcc-{word.rpartition('gcc-')[2]}", "gcc"]
    return ["gcc"]
