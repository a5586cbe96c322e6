"""The guest's file system: Debian's kernel, KVM modules and BusyBox, and the Python that runs this, as an initrd.

Stands under `machine.py`. The kernel and BusyBox come from `iobus.boot.debian`, which fetches each once
and keeps it. Python does not: the interpreter that runs this is carried in, with its standard library,
the shared libraries it needs and the distributions the tests use. So the tests run inside on what they
run on outside, whichever Python that is, and compiled packages fit. Nothing else is fetched, and no image is
kept: it takes a few seconds to make, in memory, and is never out of date.

The archive is not compressed, and each module has its bytecode beside it, which Python takes unchecked
(PEP 552): an emulated CPU decompresses and compiles slowly.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import lzma
import marshal
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

from iobus.boot import debian
from iobus.boot.initrd import Initrd, busybox_initrd, concatenate

HERE: Final = Path(__file__).parent
PROJECT: Final = HERE.parent.parent

# Paths inside.
ROOT: Final = "/iobus"
"""The project, and the working directory of what is run."""
PACKAGES: Final = f"{ROOT}/site-packages"
"""Distributions, with iobus among them as if installed: by this name, Hypothesis leaves their source unread."""
CACHE: Final = f"{ROOT}/cache"
"""`IOBUS_CACHE`: the kernel and BusyBox once more, for guests of the guest."""

DISTRIBUTIONS: Final = ("iobus", "pytest", "pytest-timeout", "hypothesis")
"""What tests import; their dependencies come along. Of iobus only the metadata: its modules are the job's."""
CARRIED: Final = ("tests", "examples", "benchmarks", "pyproject.toml")
"""What of the project's tree is at `ROOT`; its `src/iobus` is in `PACKAGES`."""

_LEFT_OUT: Final = {
    "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "tkinter", "turtledemo",
    "site-packages", "dist-packages",
}  # fmt: skip
"""Directories of the standard library that no test needs."""


class RigUnavailableError(Exception):
    """This machine cannot run the nested rig: the sentence says what is missing."""


@dataclass(frozen=True, slots=True)
class Image:
    """What QEMU is given, but for the job."""

    kernel: Path
    system: bytes
    """An initrd, to which `job_archive` is appended."""


@functools.cache
def image() -> Image:
    """Make the image; a process makes it once.

    Raises `RigUnavailableError`, and `GuestUnavailableError` where the kernel or BusyBox cannot be had.
    """
    if platform.machine() != "x86_64":
        raise RigUnavailableError(f"the nested guest takes this machine's Python, which is for {platform.machine()}")
    kernel = debian.cloud_kernel()
    busybox = debian.busybox()
    cache = debian.cache_directory()
    initrd = Initrd()
    libraries = _Programs(initrd)
    interpreter = libraries.add(Path(sys.executable).resolve(), f"{sys.base_exec_prefix}/bin/python-nested")
    _add_standard_library(initrd, libraries)
    for distribution in _closure(DISTRIBUTIONS):
        _add_distribution(initrd, libraries, distribution)
    directories = libraries.add_what_they_need()
    for index, module in enumerate(_modules(kernel.parent.parent, "kvm-amd")):
        data = module.read_bytes()
        initrd.add_file(
            f"modules/{index}-{module.name.removesuffix('.xz')}",
            lzma.decompress(data) if module.suffix == ".xz" else data,
        )
    for path in (kernel, busybox):
        initrd.add_file(f"{CACHE}/{path.relative_to(cache)}", path.read_bytes())
    initrd.add_symlink("bin/python", interpreter)
    for module_name in ("pytest", "iobus"):
        initrd.add_file(f"bin/{module_name}", f'#!/bin/sh\nexec python -m {module_name} "$@"\n'.encode())
    initrd.add_file("etc/passwd", b"root:x:0:0:root:/tmp:/bin/sh\n", 0o644)
    initrd.add_file("etc/environment", _exports(_environment(directories)), 0o644)
    script = (HERE / "inside" / "init.sh").read_text()
    return Image(kernel, concatenate(busybox_initrd(busybox.read_bytes(), script), initrd.to_bytes()))


def job_archive(tree: Path, command: Sequence[str]) -> bytes:
    """Return the archive of the project in `tree`, and of `command`, which init runs in `ROOT`."""
    initrd = Initrd()
    for part in CARRIED:
        place = tree / part
        files = [place] if place.is_file() else _files(place, {HERE.name})
        for path in files:
            _add_source(initrd, path, f"{ROOT}/{path.relative_to(tree)}")
    for path in _files(tree / "src" / "iobus"):
        _add_source(initrd, path, f"{PACKAGES}/{path.relative_to(tree / 'src')}")
    for path in _files(HERE):  # the rig's own, whatever the tree has
        _add_source(initrd, path, f"{ROOT}/tests/{HERE.name}/{path.relative_to(HERE)}")
    _add_source(initrd, HERE / "inside" / "nested_report.py", f"{PACKAGES}/nested_report.py")
    initrd.add_file("job", f"{shlex.join(command)}\n".encode(), 0o644)
    return initrd.to_bytes()


def program_archive(programs: Sequence[Path], files: Sequence[Path] = ()) -> bytes:
    """Return an archive of programs of this machine with their libraries, and of `files`, each where it is here."""
    initrd = Initrd()
    carried = _Programs(initrd)
    for path in programs:
        carried.add(path, str(path))
    carried.add_what_they_need()
    for path in files:
        initrd.add_file(str(path), path.read_bytes(), 0o644)
    return initrd.to_bytes()


class _Programs:
    """Programs and shared objects in the archive, and the libraries they need."""

    def __init__(self, initrd: Initrd) -> None:
        self._initrd = initrd
        self._paths: list[Path] = []

    def add(self, path: Path, inside: str) -> str:
        """Add one file; return where it is inside."""
        self._initrd.add_file(inside, path.read_bytes())
        self._paths.append(path)
        return inside

    def add_what_they_need(self) -> list[str]:
        """Add the libraries and the loader, each where it is outside; return the libraries' directories."""
        ldd = shutil.which("ldd")
        if ldd is None:
            raise RigUnavailableError("this machine has no ldd, which tells the libraries that Python needs")
        # It also says "not a dynamic executable" and "not found"; then that module cannot be imported here either.
        shown = subprocess.run(
            [ldd, *map(str, self._paths)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        ).stdout
        found = sorted(set(re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", shown, re.MULTILINE)))
        for path in found:
            self._initrd.add_file(path, Path(path).read_bytes())
        return sorted({path.rpartition("/")[0] for path in found})


def _add_standard_library(initrd: Initrd, programs: _Programs) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    for path in _files(library, _LEFT_OUT):
        if path.suffix == ".so" and "tkinter" not in path.name:
            programs.add(path, str(path))
        elif path.suffix == ".py":
            _add_source(initrd, path, str(path))


def _closure(names: Sequence[str]) -> list[importlib.metadata.Distribution]:
    """Return the distributions of these names and all they depend on, as installed for the Python that runs this."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise RigUnavailableError(f"{name} is not installed here, so it cannot be carried into the guest") from None
        requirements = map(Requirement, found[name].requires or ())
        waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [found[name] for name in sorted(found)]


def _add_distribution(initrd: Initrd, programs: _Programs, distribution: importlib.metadata.Distribution) -> None:
    if distribution.files is None:
        raise RigUnavailableError(f"{distribution.name} is installed here without a list of its files (RECORD)")
    for file in distribution.files:
        path, inside = Path(str(file.locate())), f"{PACKAGES}/{file}"
        if {"..", "__pycache__"} & set(file.parts) or file.suffix == ".a" or not path.is_file():
            continue  # commands in bin/, bytecode, and libraries for linking
        if file.parts[0] == "iobus":
            continue
        if ".so" in file.suffixes:
            programs.add(path, inside)
        else:
            _add_source(initrd, path, inside)


def _add_source(initrd: Initrd, path: Path, inside: str) -> None:
    """Add a file, and if it is Python its bytecode, unless it does not compile."""
    data = path.read_bytes()
    initrd.add_file(inside, data, 0o644)
    if path.suffix != ".py":
        return
    try:
        code = _Loader(path.stem, str(path)).get_code(path.stem)
    except (SyntaxError, ValueError):
        return
    # PEP 552: flags 0b01 for "by hash, unchecked"; the hash is never looked at. Of marshal's formats, 2 is the last
    # that says nothing of reference counts, so that the same source is the same bytes.
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(data)
    directory, _, name = inside.rpartition("/")
    bytecode = f"{directory}/__pycache__/{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
    initrd.add_file(bytecode, header + marshal.dumps(code, 2), 0o644)


class _Loader(SourceFileLoader):
    """Takes bytecode from beside the source where it is up to date, but never writes any."""

    def set_data(self, path: Any, data: Any, **_: Any) -> None:
        pass


def _modules(tree: Path, name: str) -> Iterator[Path]:
    """Yield the files of a kernel module and those it depends on, in the order to load them."""
    path = next((path for pattern in (".ko", ".ko.xz") for path in tree.rglob(name + pattern)), None)
    if path is None:
        raise RigUnavailableError(f"{tree} has no module {name}; remove that directory to fetch the kernel again")
    data = path.read_bytes()
    data = lzma.decompress(data) if path.suffix == ".xz" else data
    depends = re.search(rb"\0depends=([\w,-]*)\0", data)  # modinfo
    for other in depends[1].decode().split(",") if depends else ():
        if other:
            yield from _modules(tree, other)
    yield path


def _environment(libraries: Sequence[str]) -> Mapping[str, str]:
    return {
        "PATH": "/bin",
        "HOME": "/tmp",
        "USER": "root",
        "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}",
        "PYTHONPATH": PACKAGES,
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": ":".join(libraries),
        "IOBUS_CACHE": CACHE,
        # Hypothesis then sets no deadlines, always tries the same examples, and keeps no database.
        "CI": "true",
        # With plugins by name: otherwise pytest rewrites all of Hypothesis for its asserts, half a minute inside.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "pytest_timeout,_hypothesis_pytestplugin,nested_report",
        "PYTEST_ADDOPTS": "--color=no -p no:cacheprovider",
    }


def _exports(environment: Mapping[str, str]) -> bytes:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()).encode()


def _files(directory: Path, without: Set[str] = frozenset()) -> list[Path]:
    """Return the files of a tree; none that is hidden or bytecode, or in a directory of a name in `without`."""
    found: list[Path] = []
    for place, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if name not in without and _is_kept(name))
        found += [path for name in sorted(names) if _is_kept(name) and (path := Path(place, name)).is_file()]
    return found


def _is_kept(name: str) -> bool:
    return name != "__pycache__" and not name.startswith(".")
