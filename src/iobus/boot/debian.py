"""Where guests come from: Debian's own packages, fetched and unpacked without root, kept in a cache.

Stands apart in `boot`: it returns paths of files, which `linux.py` and its neighbours load. Nothing
is installed, and what is kept is in the cache directory: `apt-get download` fetches a package and
checks it by the archive's signature, `dpkg-deb -x` unpacks it. Where the machine has no package lists
for the architecture, they are fetched too, for this one time.

A package is `<cache>/<package>_<architecture>/`, its file tree. It is there whole or not at all:
work is done in a directory beside it, `.fetch-*`, and the finished tree is moved into place. `.lock`
is held meanwhile, so of two processes one waits and finds the package there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from iobus.bus import IobusError

Progress = Callable[[str], None]
"""Called with a line of text when something that takes time begins."""

_GIVE: Final = "give files of your own instead (--kernel FILE, --initrd FILE)"
_TOOLS: Final = ("apt-get", "apt-cache", "dpkg-deb")
# As root, apt would fetch as the user _apt, who cannot write to our directory, and warn of it.
_APT_OPTIONS: Final = ("-o", "APT::Sandbox::User=root", "-o", "APT::Update::Error-Mode=any", "-q")
_IN_EVERY_ARCHIVE: Final = "base-files"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")  # Debian policy, section 5.6.1


class GuestUnavailableError(IobusError):
    """A guest that cannot be had from Debian: the sentence says why and what to do."""


def cache_directory() -> Path:
    """Return where guests are kept: $IOBUS_CACHE, else $XDG_CACHE_HOME/iobus, else ~/.cache/iobus."""
    if own := os.environ.get("IOBUS_CACHE"):
        return Path(own).absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    return (Path(xdg) if xdg.startswith("/") else Path.home() / ".cache") / "iobus"


def fetch(
    package: str, architecture: str = "amd64", *, cache: Path | None = None, progress: Progress = lambda line: None
) -> Path:
    """Return the directory of the unpacked `package`, from the cache or else from Debian.

    `cache` is by default `cache_directory()`. Raises `GuestUnavailableError`.
    """
    for what, name in (("package", package), ("architecture", architecture)):
        if not _NAME.fullmatch(name):
            raise GuestUnavailableError(f"{name!r} is no name of a Debian {what}; use lower-case letters, digits, +-.")
    cache = cache_directory() if cache is None else cache.absolute()
    place = cache / f"{package}_{architecture}"
    if _is_whole(place):
        return place
    with _Fetcher.open(cache, architecture, progress) as fetcher:
        return fetcher.bring(package)


def cloud_kernel(*, cache: Path | None = None, progress: Progress = lambda line: None) -> Path:
    """Return the vmlinuz of Debian's small 64-bit kernel for virtual machines, as `linux_kernel` does."""
    return linux_kernel("cloud-amd64", "amd64", cache=cache, progress=progress)


def linux_kernel(
    flavour: str, architecture: str, *, cache: Path | None = None, progress: Progress = lambda line: None
) -> Path:
    """Return the vmlinuz of Debian's kernel of a flavour, such as "amd64", "686" or "686-pae".

    The newest one in the cache, if there is one; else the one that linux-image-FLAVOUR depends on.
    Its modules are in `lib/modules` of the same package. Raises `GuestUnavailableError`.
    """
    cache = cache_directory() if cache is None else cache.absolute()
    pattern = f"linux-image-*[0-9]-{flavour}_{architecture}/boot/vmlinuz-*"
    cached = [path for path in cache.glob(pattern) if path.is_file()]
    if cached:
        return max(cached, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    with _Fetcher.open(cache, architecture, progress) as fetcher:
        tree = fetcher.bring(fetcher.dependency(f"linux-image-{flavour}", "linux-image-"))
    return _one_file(tree, "boot/vmlinuz-*")


def kernel_headers(kernel: Path, *, cache: Path | None = None, progress: Progress = lambda line: None) -> Path:
    """Return a tree with all that modules for `kernel`, a vmlinuz of `linux_kernel`'s, are built with but a compiler.

    In it are the headers in usr/src/linux-headers-RELEASE, those they share with other flavours in
    usr/src/linux-headers-*-common, and in usr/lib kbuild and a library of its programs. Raises `GuestUnavailableError`.
    """
    release = kernel.name.removeprefix("vmlinuz-")
    architecture = kernel.parent.parent.name.rpartition("_")[2]
    package = f"linux-headers-{release}"
    cache = cache_directory() if cache is None else cache.absolute()
    place = cache / f"{package}_{architecture}"
    if _is_whole(place):
        return place
    with _Fetcher.open(cache, architecture, progress) as fetcher:
        kbuild = fetcher.dependency(package, "linux-kbuild-")
        common = fetcher.dependency(package, "linux-headers-")
        return fetcher.bring(package, common, kbuild, fetcher.dependency(kbuild, "libelf"))


def busybox(architecture: str = "amd64", *, cache: Path | None = None, progress: Progress = lambda line: None) -> Path:
    """Return the statically linked BusyBox of the package busybox-static. Raises `GuestUnavailableError`."""
    return _one_file(fetch("busybox-static", architecture, cache=cache, progress=progress), "**/bin/busybox")


class _Fetcher:
    """The locked cache, a directory to work in, and apt's tools."""

    def __init__(self, cache: Path, work: Path, architecture: str, progress: Progress) -> None:
        self._cache = cache
        self._work = work
        self._architecture = architecture
        self._progress = progress
        self._own_lists: tuple[str, ...] = ()

    @classmethod
    @contextlib.contextmanager
    def open(cls, cache: Path, architecture: str, progress: Progress) -> Iterator[_Fetcher]:
        """Hold the cache's lock. Raises `GuestUnavailableError` when nothing can be fetched here."""
        for tool in _TOOLS:
            if shutil.which(tool) is None:
                raise GuestUnavailableError(f"this machine has no {tool}, with which guests are fetched; {_GIVE}")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with (cache / ".lock").open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    progress(f"waiting for another process that fetches into {cache}")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                for leftover in cache.glob(".fetch-*"):  # of a process that was killed: we hold the lock
                    shutil.rmtree(leftover, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as work:
                    yield cls(cache, Path(work), architecture, progress)
        except OSError as exc:
            raise GuestUnavailableError(
                f"cache directory {cache} cannot be used ({exc}); set IOBUS_CACHE to one that can be written"
            ) from exc

    def bring(self, package: str, *others: str) -> Path:
        """Return the tree of `package`, with `others` in it; fetch them if another process has not while we waited."""
        place = self._cache / f"{package}_{self._architecture}"
        if _is_whole(place):
            return place
        options = self._options_for(package)
        self._progress(f"fetching {package} ({self._architecture}) from Debian")
        packages = [f"{name}:{self._architecture}" for name in (package, *others)]
        result = _run("apt-get", *options, "download", *packages, cwd=self._work)
        archives = list(self._work.glob("*.deb"))
        if result.returncode or len(archives) != len(packages):
            raise GuestUnavailableError(
                f"{package} ({self._architecture}) could not be downloaded: {_reason(result)}; "
                f"check the network, run apt-get update as root if the package lists are old, or {_GIVE}"
            )
        tree = self._work / "tree"
        for archive in archives:
            result = _run("dpkg-deb", "-x", str(archive), str(tree))
            if result.returncode or not _is_whole(tree):
                raise GuestUnavailableError(
                    f"{archive.name} could not be unpacked in {self._cache}: {_reason(result)}; "
                    f"check the space on that disk, or {_GIVE}"
                )
        tree.rename(place)
        return place

    def dependency(self, package: str, prefix: str) -> str:
        """Return the dependency of `package` that begins with `prefix`; a metapackage's is what it stands for."""
        options = self._options_for(package)
        shown = _run("apt-cache", *options, "show", "--no-all-versions", f"{package}:{self._architecture}").stdout
        found = re.search(rf"^Depends:.*?(?<![^\s,])({re.escape(prefix)}[a-z0-9+.-]+)", shown, re.MULTILINE)
        if found is None:
            raise GuestUnavailableError(
                f"{package} ({self._architecture}) depends on no package {prefix}* here; "
                f"run apt-get update as root, or {_GIVE}"
            )
        return found[1]

    def _options_for(self, package: str) -> tuple[str, ...]:
        """Return apt's options for package lists that have `package`: the machine's, else our own."""
        if self._is_listed(package, _APT_OPTIONS):
            return _APT_OPTIONS
        if not self._is_listed(_IN_EVERY_ARCHIVE, _APT_OPTIONS):
            reason = self._fetch_lists()
            if self._is_listed(package, self._own_lists):
                return self._own_lists
            if not self._is_listed(_IN_EVERY_ARCHIVE, self._own_lists):
                raise GuestUnavailableError(
                    f"this machine has no package lists for {self._architecture} and they could not be fetched: "
                    f"{reason}; check the network and apt's sources, run apt-get update as root, or {_GIVE}"
                )
        raise GuestUnavailableError(
            f"{package} ({self._architecture}) is in none of this machine's package lists, as on a distribution other "
            f"than Debian; {_GIVE}"
        )

    def _is_listed(self, package: str, options: tuple[str, ...]) -> bool:
        result = _run("apt-cache", *options, "madison", f"{package}:{self._architecture}")
        return not result.returncode and bool(result.stdout.strip())

    def _fetch_lists(self) -> str:
        """Have package lists in the work directory, where they need no root; return why not, if it failed."""
        if self._own_lists:
            return ""
        self._progress(f"fetching Debian's package lists for {self._architecture}")
        state = self._work / "apt"
        for directory in ("lists/partial", "archives/partial"):
            (state / directory).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()  # no package is installed, as far as these lists go
        settings = {
            "Dir::State": state, "Dir::State::status": state / "status", "Dir::Cache": state,
            "APT::Architecture": self._architecture, "APT::Architectures": self._architecture,
        }  # fmt: skip
        self._own_lists = (
            *_APT_OPTIONS,
            *(word for key, value in settings.items() for word in ("-o", f"{key}={value}")),
        )
        result = _run("apt-get", *self._own_lists, "update")
        return _reason(result) if result.returncode else "apt's sources have none"


def _is_whole(tree: Path) -> bool:
    return any(path.is_file() for path in tree.rglob("*"))


def _one_file(tree: Path, pattern: str) -> Path:
    for path in sorted(tree.glob(pattern)):
        if path.is_file():
            return path
    raise GuestUnavailableError(f"{tree} has no file {pattern}; remove that directory to fetch it again, or {_GIVE}")


def _run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    """Return what a tool gave as its error, in one line."""
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    lines.sort(key=lambda line: not line.startswith(("E:", "dpkg-deb: error")))
    return lines[0] if lines else f"{Path(str(result.args[0])).name} gave status {result.returncode}"
