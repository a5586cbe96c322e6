"""boot/debian.py: with stand-ins for apt's tools on PATH for what goes wrong, and once for real."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from iobus.boot import debian
from iobus.boot.debian import GuestUnavailableError, busybox, cache_directory, cloud_kernel, fetch, kernel_headers
from iobus.boot.linux import LinuxKernel

KERNEL = "linux-image-6.1.0-9-cloud-amd64"
HEAD = """#!/bin/sh
here=$(dirname "$0")
for last; do :; done
name=${last%%:*}
"""
APT_CACHE = """
case " $* " in
*" madison "*) if grep -qx "$last" "$here/listed"; then echo "$name | 1.0 | archive"; fi ;;
*" show "*) cat "$here/shown" ;;
esac
"""
APT_GET = """
case " $* " in
*" update "*)
    if [ -f "$here/new" ]; then cp "$here/new" "$here/listed"; exit 0; fi
    echo "E: Failed to fetch http://mirror.example: Temporary failure resolving 'mirror.example'" >&2
    exit 100 ;;
*" download "*)
    for word; do
        case $word in *:amd64 | *:i386) echo "$word" >> "$here/downloads"; touch "${word%%:*}_1.0.deb" ;; esac
    done ;;
esac
"""
DPKG_DEB = """
case "$2" in
*linux-image*) mkdir -p "$3/boot"; echo bzImage > "$3/boot/vmlinuz-6.1.0-9-cloud-amd64" ;;
*busybox*) mkdir -p "$3/bin"; echo program > "$3/bin/busybox" ;;
*) mkdir -p "$3/usr"; echo "$2" > "$3/usr/$(basename "$2" _1.0.deb)" ;;
esac
"""


class Tools:
    """A directory of stand-ins that is the first of PATH, and a cache."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin = tmp_path / "tools"
        self.cache = tmp_path / "cache"
        self.bin.mkdir()
        self.lines: list[str] = []
        self.script("apt-cache", APT_CACHE)
        self.script("apt-get", APT_GET)
        self.script("dpkg-deb", DPKG_DEB)
        self.list_packages("base-files", "busybox-static", "linux-image-cloud-amd64", KERNEL)
        (self.bin / "shown").write_text(f"Package: linux-image-cloud-amd64\nDepends: {KERNEL} (= 6.1-1)\n")
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        monkeypatch.setenv("IOBUS_CACHE", str(self.cache))

    def script(self, tool: str, body: str) -> None:
        path = self.bin / tool
        path.write_text(HEAD + body)
        path.chmod(0o755)

    def list_packages(self, *names: str, architecture: str = "amd64", file: str = "listed") -> None:
        (self.bin / file).write_text("".join(f"{name}:{architecture}\n" for name in names))

    @property
    def downloads(self) -> list[str]:
        log = self.bin / "downloads"
        return log.read_text().split() if log.exists() else []

    def left(self) -> set[str]:
        """What is in the cache but its lock."""
        return {path.name for path in self.cache.iterdir()} - {".lock"}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(tmp_path, monkeypatch)


def test_a_package_is_fetched_once_and_then_used_offline(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call needs neither network nor tools, and says nothing."""
    place = fetch("busybox-static", progress=tools.lines.append)
    assert place == tools.cache / "busybox-static_amd64" and (place / "bin/busybox").read_text() == "program\n"
    assert tools.left() == {"busybox-static_amd64"}
    assert len(tools.lines) == 1 and "busybox-static" in tools.lines[0]
    monkeypatch.setenv("PATH", "/nowhere")
    assert fetch("busybox-static", progress=tools.lines.append) == place
    assert busybox() == place / "bin/busybox"
    assert tools.downloads == ["busybox-static:amd64"] and len(tools.lines) == 1


def test_the_cloud_kernel_is_the_one_the_metapackage_depends_on(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    """linux-image-cloud-amd64 is resolved to the versioned package, and the newest cached is used offline."""
    vmlinuz = cloud_kernel(progress=tools.lines.append)
    assert vmlinuz == tools.cache / f"{KERNEL}_amd64/boot/vmlinuz-6.1.0-9-cloud-amd64"
    newer = tools.cache / "linux-image-6.1.0-10-cloud-amd64_amd64/boot/vmlinuz-6.1.0-10-cloud-amd64"
    newer.parent.mkdir(parents=True)
    newer.write_text("bzImage")
    monkeypatch.setenv("PATH", "/nowhere")
    assert cloud_kernel() == newer


def test_a_kernel_s_headers_are_one_tree(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    """The headers, those they share, kbuild and its library, which Debian has in four packages; fetched once."""
    parts = {"linux-headers-6.1.0-9-cloud-amd64", "linux-headers-6.1.0-9-common", "linux-kbuild-6.1", "libelf1"}
    tools.list_packages("base-files", KERNEL, "linux-image-cloud-amd64", *parts)
    vmlinuz = cloud_kernel()
    (tools.bin / "shown").write_text(
        "Depends: linux-headers-6.1.0-9-common (= 6.1-1), linux-kbuild-6.1 (>= 6.1-1), libc6, libelf1 (>= 0.142)\n"
    )
    tree = kernel_headers(vmlinuz)
    assert tree == tools.cache / "linux-headers-6.1.0-9-cloud-amd64_amd64"
    assert {path.name for path in (tree / "usr").iterdir()} == parts
    monkeypatch.setenv("PATH", "/nowhere")
    assert kernel_headers(vmlinuz) == tree


@pytest.mark.parametrize("tool", ["apt-get", "apt-cache", "dpkg-deb"])
def test_without_debian_s_tools_the_error_says_to_give_files(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    """A machine without apt: it names the tool and the way out."""
    (tools.bin / tool).unlink()
    monkeypatch.setenv("PATH", str(tools.bin))
    with pytest.raises(GuestUnavailableError, match=f"no {tool}.*--kernel FILE"):
        cloud_kernel()


def test_on_another_distribution_the_error_says_to_give_files(tools: Tools) -> None:
    """Ubuntu's lists are there and hold no linux-image-cloud-amd64: nothing is downloaded to find out."""
    tools.list_packages("base-files", "linux-image-generic")
    with pytest.raises(GuestUnavailableError, match=r"linux-image-cloud-amd64 \(amd64\) is in none.*--kernel FILE"):
        cloud_kernel(progress=tools.lines.append)
    assert tools.lines == [] and tools.left() == set()


def test_missing_package_lists_are_fetched_for_the_one_time(tools: Tools) -> None:
    """No lists for the architecture: they are fetched into the work directory, without root, and go with it."""
    tools.list_packages("base-files", "busybox-static", architecture="i386", file="new")
    assert busybox("i386", progress=tools.lines.append) == tools.cache / "busybox-static_i386/bin/busybox"
    assert tools.downloads == ["busybox-static:i386"] and tools.left() == {"busybox-static_i386"}
    assert "package lists for i386" in tools.lines[0]


def test_missing_package_lists_without_a_network(tools: Tools) -> None:
    """The error says what apt said and what to do, and nothing is left behind."""
    tools.list_packages()
    with pytest.raises(GuestUnavailableError, match=r"no package lists for amd64.*resolving.*apt-get update as root"):
        busybox()
    assert tools.left() == set()


def test_a_network_that_is_down(tools: Tools) -> None:
    """The download fails: apt's reason is in the error, and nothing is left behind."""
    tools.script("apt-get", "echo 'W: a warning' >&2; echo 'E: Could not connect to mirror.example' >&2; exit 100")
    with pytest.raises(GuestUnavailableError, match=r"busybox-static \(amd64\).*Could not connect.*check the network"):
        busybox()
    assert tools.left() == set()


@pytest.mark.parametrize(
    "script", ["echo 'dpkg-deb: error: no space left' >&2; exit 2", 'mkdir -p "$3/empty/deep"', "exit 0"]
)
def test_a_tree_that_is_not_whole_is_no_guest(tools: Tools, script: str) -> None:
    """A failed or empty unpacking leaves nothing, and the next attempt succeeds."""
    tools.script("dpkg-deb", script)
    with pytest.raises(GuestUnavailableError, match=r"busybox-static_1\.0\.deb could not be unpacked"):
        busybox()
    assert tools.left() == set()
    tools.script("dpkg-deb", DPKG_DEB)
    assert busybox().is_file()


def test_a_package_without_the_wanted_file(tools: Tools) -> None:
    """A kernel package with no vmlinuz, a metapackage with no dependency: each says so."""
    tools.script("dpkg-deb", 'mkdir -p "$3"; touch "$3/readme"')
    with pytest.raises(GuestUnavailableError, match=r"has no file boot/vmlinuz-\*; remove that directory"):
        cloud_kernel()
    (tools.bin / "shown").write_text("Package: linux-image-cloud-amd64\n")
    with pytest.raises(GuestUnavailableError, match="depends on no package linux-image-"):
        cloud_kernel()


@pytest.mark.parametrize("name", ["../etc", "a/b", "", "UPPER", "-o", "x;y"])
def test_a_name_that_is_no_package_is_refused(tools: Tools, name: str) -> None:
    """Names go into paths and commands: only those of Debian's policy are taken."""
    with pytest.raises(GuestUnavailableError, match="is no name of a Debian package"):
        fetch(name)
    with pytest.raises(GuestUnavailableError, match="is no name of a Debian architecture"):
        fetch("busybox-static", name)


def test_a_cache_that_cannot_be_written(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the place of the directory: the error names it and the variable to set."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IOBUS_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(GuestUnavailableError, match=r"file/cache cannot be used.*set IOBUS_CACHE"):
        busybox()


def test_two_at_once_fetch_once(tools: Tools) -> None:
    """The second waits, says so, and takes what the first brought."""
    tools.script("apt-get", f"sleep 0.4\n{APT_GET}")
    places: list[Path] = []
    threads = [
        threading.Thread(target=lambda: places.append(fetch("busybox-static", progress=tools.lines.append)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places == [tools.cache / "busybox-static_amd64"] * 2
    assert tools.downloads == ["busybox-static:amd64"] and tools.left() == {"busybox-static_amd64"}
    assert any("waiting for another process" in line for line in tools.lines)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_fetch_leaves_nothing_half_done(tools: Tools) -> None:
    """After SIGKILL no package is there, and the next fetch removes what was left and succeeds."""
    tools.script("apt-get", f"{APT_GET}\nsleep 20")
    process = subprocess.Popen(
        [sys.executable, "-c", "from iobus.boot.debian import busybox; busybox()"], start_new_session=True
    )
    wait_for(lambda: tools.downloads != [])
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tools.cache / "busybox-static_amd64").exists()
    assert any(name.startswith(".fetch-") for name in tools.left())
    tools.script("apt-get", APT_GET)
    assert busybox().is_file()
    assert tools.left() == {"busybox-static_amd64"}


def test_an_interrupted_fetch_leaves_nothing(tools: Tools) -> None:
    """Control-C while it works: the work directory goes, and the lock is free."""

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        busybox(progress=interrupt)
    assert tools.left() == set()
    assert busybox().is_file()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$IOBUS_CACHE, else $XDG_CACHE_HOME/iobus unless that is relative, else ~/.cache/iobus."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IOBUS_CACHE", "/some/where")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/some/where")
    monkeypatch.delenv("IOBUS_CACHE")
    assert cache_directory() == Path("/xdg/iobus")
    for value in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_directory() == tmp_path / ".cache/iobus"


def test_the_real_busybox_of_debian(tmp_path: Path) -> None:
    """A fetch from the archive gives a static program; only a machine with apt and a network can tell."""
    try:
        program = busybox(cache=tmp_path)
    except GuestUnavailableError as exc:
        pytest.skip(f"no guest from Debian here: {exc}")
    assert program.read_bytes().startswith(b"\x7fELF")
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "busybox-static_amd64"}


@pytest.mark.slow
def test_the_real_cloud_kernel_of_debian() -> None:
    """Debian's cloud kernel is a bzImage that `LinuxKernel` takes."""
    try:
        vmlinuz = cloud_kernel()
    except GuestUnavailableError as exc:
        pytest.skip(f"no guest from Debian here: {exc}")
    assert LinuxKernel.read(vmlinuz).relocatable
    assert debian.cache_directory() in vmlinuz.parents
