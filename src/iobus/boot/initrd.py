"""Build an initial RAM file system without root: `Initrd`, and `busybox_initrd` for a shell guest.

Stands beside the loaders in `boot`: it makes the bytes that `linux.py` places. The archive is cpio
"newc", uncompressed (an emulated CPU unpacks it sooner than it decompresses). The format and the
kernel's limits are those of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from iobus.bus import IobusError

PATH_MAX: Final = 4096
"""The kernel skips an entry whose name or link target, with its final NUL, is longer; in bytes."""

_FORMATS: Final = {"char": stat.S_IFCHR, "block": stat.S_IFBLK}

_DEVICES: Final = (
    ("console", 5, 1),
    ("kmsg", 1, 11),
    ("mem", 1, 1),
    ("null", 1, 3),
    ("port", 1, 4),
    ("random", 1, 8),
    ("tty", 5, 0),
    ("ttyS0", 4, 64),
    ("urandom", 1, 9),
    ("zero", 1, 5),
)
"""Character devices by the kernel's Documentation/admin-guide/devices.txt: name, major, minor."""

_APPLETS: Final = (
    "[ ash awk base64 basename cat chmod chown chroot clear cmp cp cpio cut date dd devmem df diff dirname dmesg du "
    "echo ed env expr false find free getty grep gunzip gzip halt head hexdump hostname hwclock id ifconfig init "
    "insmod ip kill killall less ln logger login ls lsmod md5sum mdev mkdir mkfifo mknod mktemp modinfo modprobe more "
    "mount mv nc nproc od paste pidof ping poweroff printf ps pwd readlink realpath reboot rm rmdir rmmod route sed "
    "seq setsid sh sha256sum sleep sort stat strings stty switch_root sync sysctl tail tar taskset tee test time "
    "timeout top touch tr true truncate tty umount uname uniq uptime usleep vi watch watchdog wc wget which xargs xxd "
    "yes zcat"
)
"""The commands of Debian's BusyBox that get a link in /bin: all of its 270 would only slow a boot down."""


class InitrdError(IobusError, ValueError):
    """An entry that no archive can hold: it names the path, the value and what would be right."""


@dataclass(frozen=True, slots=True)
class _Entry:
    mode: int
    """File type and permissions, as in `st_mode`."""
    data: bytes = b""
    major: int = 0
    minor: int = 0


class Initrd:
    """A file system tree that becomes a cpio archive. The order of the calls does not change the bytes.

    Paths are the guest's, with or without the leading slash. Directories on the way to an entry are
    made with mode 0755. Owner is root, times are zero. Every `add_` method raises `InitrdError` for
    a path that is taken or that cannot be.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[str, ...], _Entry] = {}

    def add_file(self, path: str, data: bytes, mode: int = 0o755) -> None:
        """Add a regular file."""
        if len(data) > 0xFFFFFFFF:
            raise InitrdError(f"{path!r} has {len(data)} bytes; the archive format holds less than 4 GiB a file")
        self._add(path, stat.S_IFREG, mode, data=bytes(data))

    def add_dir(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, or give one that is there this mode."""
        parts = _split(path)
        known = self._entries.get(parts)
        if known is not None and stat.S_ISDIR(known.mode):
            del self._entries[parts]
        self._add(path, stat.S_IFDIR, mode)

    def add_symlink(self, path: str, target: str) -> None:
        """Add a symbolic link that says `target`, which need not exist."""
        raw = target.encode(errors="surrogateescape")
        if not raw or b"\0" in raw or len(raw) >= PATH_MAX:
            raise InitrdError(
                f"link {path!r} points to {target[:80]!r}; give 1 to {PATH_MAX - 1} bytes without a NUL character"
            )
        self._add(path, stat.S_IFLNK, 0o777, data=raw)

    def add_device(self, path: str, kind: Literal["char", "block"], major: int, minor: int, mode: int = 0o600) -> None:
        """Add a device node. The kernel's numbers are 12 bits major and 20 bits minor."""
        if kind not in _FORMATS:
            raise InitrdError(f"device {path!r} is of kind {kind!r}; use 'char' or 'block'")
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise InitrdError(f"device {path!r} has number {major}:{minor}; use 0-4095 and 0-1048575")
        self._add(path, _FORMATS[kind], mode, major=major, minor=minor)

    def to_bytes(self) -> bytes:
        """Return the archive."""
        out = bytearray()
        # By components, so that a directory comes before what is in it.
        for inode, (parts, entry) in enumerate(sorted(self._entries.items()), start=1):
            _append(out, "/".join(parts).encode(errors="surrogateescape"), entry, inode)
        _append(out, b"TRAILER!!!", _Entry(0), 0)
        return bytes(out)

    def _add(self, path: str, kind: int, mode: int, *, data: bytes = b"", major: int = 0, minor: int = 0) -> None:
        parts = _split(path)
        if not 0 <= mode <= 0o7777:
            raise InitrdError(f"{path!r} has mode {mode:#o}; use permission bits, 0 to 0o7777")
        if parts in self._entries:
            raise InitrdError(f"{path!r} is in the archive already")
        for depth in range(1, len(parts)):
            parent = self._entries.get(parts[:depth])
            if parent is not None and not stat.S_ISDIR(parent.mode):
                raise InitrdError(f"{path!r} cannot be: {'/'.join(parts[:depth])!r} is no directory")
        for depth in range(1, len(parts)):
            self._entries.setdefault(parts[:depth], _Entry(stat.S_IFDIR | 0o755))
        self._entries[parts] = _Entry(kind | mode, data, major, minor)


def concatenate(*archives: bytes) -> bytes:
    """Return one initrd of several, compressed or not: the kernel unpacks them in order, later files win."""
    return b"".join(archive + bytes(-len(archive) % 4) for archive in archives)


def busybox_initrd(busybox: bytes, init_script: str, files: Mapping[str, bytes] = MappingProxyType({})) -> bytes:
    """Return an initrd that runs `init_script` as /init under BusyBox's shell.

    `busybox` is a statically linked BusyBox. The directories /bin /dev /etc /proc /run /sys /tmp exist,
    the usual commands are in /bin and the basic nodes in /dev; nothing is mounted.
    `files` are added as they are, executable. Raises `InitrdError`.
    """
    if not busybox.startswith(b"\x7fELF"):
        raise InitrdError(f"BusyBox begins with {busybox[:4]!r}; give the bytes of a statically linked ELF program")
    initrd = Initrd()
    for directory in ("bin", "dev", "etc", "proc", "run", "sys"):
        initrd.add_dir(directory)
    initrd.add_dir("tmp", 0o1777)
    initrd.add_file("bin/busybox", busybox)
    for applet in _APPLETS.split():
        initrd.add_symlink(f"bin/{applet}", "busybox")
    for name, major, minor in _DEVICES:
        initrd.add_device(f"dev/{name}", "char", major, minor, 0o666)
    script = init_script if init_script.startswith("#!") else f"#!/bin/sh\n{init_script}"
    initrd.add_file("init", (script if script.endswith("\n") else f"{script}\n").encode())
    for path, data in files.items():
        initrd.add_file(path, data)
    return initrd.to_bytes()


def _split(path: str) -> tuple[str, ...]:
    parts = tuple(path.removeprefix("/").split("/"))
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise InitrdError(f"{path!r} is no path for an archive; use names and single slashes, such as 'etc/motd'")
    if parts == ("TRAILER!!!",):
        raise InitrdError(f"{path!r} marks the end of an archive and cannot name an entry")
    if len("/".join(parts).encode(errors="surrogateescape")) >= PATH_MAX:
        raise InitrdError(f"{path[:80]!r}... is {len(path)} characters long; the kernel takes {PATH_MAX - 1} bytes")
    return parts


def _append(out: bytearray, name: bytes, entry: _Entry, inode: int) -> None:
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino, mode, uid, gid, nlink, mtime, filesize, dev major and minor, rdev major and minor, namesize, check
    fields = (
        inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, entry.major, entry.minor, len(name) + 1, 0,
    )  # fmt: skip
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
