"""What a running guest's process tells `iobus top`: counts, over a socket of the same user.

`Monitor` is open while a guest runs. It listens on a Unix socket named after the process in a directory that
only the user can enter. While somebody is connected it counts accesses, which slows them as a trace does, and
sends its counts as a line of JSON each second; otherwise the access path pays nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from iobus.bus import Region
from iobus.path import Access, AccessPath
from iobus.pc.pc import Pc

PERIOD_SECONDS: Final = 1.0


class SocketDirectoryError(OSError):
    """The directory for the sockets is not this user's alone."""


def directory() -> Path:
    """Return the directory of the sockets, made if need be, without those of processes that were killed.

    Raises `OSError`.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(runtime) / "iobus" if runtime else Path(tempfile.gettempdir()) / f"iobus-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()  # in a shared directory somebody else may have made it first
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SocketDirectoryError(f"{path} is not a directory that only user {os.getuid()} can enter")
    for left in path.glob("*.sock"):
        if _is_dead(left):
            left.unlink(missing_ok=True)
    return path


def _is_dead(path: Path) -> bool:
    """Whether a socket's process is gone. Asked twice, for it may have a number only in another container."""
    try:
        os.kill(int(path.stem), 0)
    except ProcessLookupError:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            return client.connect_ex(str(path)) == errno.ECONNREFUSED
    except (OSError, ValueError, OverflowError):  # another user's process, or no number of one
        pass
    return False


class Monitor:
    """Serves the counts of `pc` while it is open."""

    def __init__(self, pc: Pc, say: Callable[[str], None]) -> None:
        self._pc = pc
        self._say = say
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._server: socket.socket | None = None
        self._path: Path | None = None

    def __enter__(self) -> Self:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path = directory() / f"{os.getpid()}.sock"
            path.unlink(missing_ok=True)  # of an earlier process with the same number
            server.bind(str(path))
            server.listen()
        except OSError as exc:
            server.close()
            self._say(f"iobus: iobus top will not find this guest: {exc}")
            return self
        self._server, self._path = server, path
        self._thread = threading.Thread(target=self._main, name="iobus-monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if self._thread is None or self._server is None or self._path is None:
            return
        self._closing.set()
        with contextlib.suppress(OSError):  # wakes the accept
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()
        self._path.unlink(missing_ok=True)

    def _main(self) -> None:
        assert self._server is not None
        while not self._closing.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):  # the client went away
                client.settimeout(PERIOD_SECONDS)
                self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        """One client at a time; a second one waits until the first has gone."""
        with counting(self._pc) as counts:
            while not self._closing.is_set():
                client.sendall((json.dumps(counts()) + "\n").encode())
                self._closing.wait(PERIOD_SECONDS)


@contextlib.contextmanager
def counting(pc: Pc) -> Iterator[Callable[[], dict[str, Any]]]:
    """Count accesses by region while open; yields a function that returns all counts as plain data."""
    machine = pc.machine
    regions: dict[Region, list[int]] = {}  # reads, writes, ns in the device; guarded by the machine lock

    def observe(access: Access) -> None:
        if access.region is not None:
            counts = regions.setdefault(access.region, [0, 0, 0])
            counts[access.is_write] += 1
            counts[2] += access.taken

    def counts() -> dict[str, Any]:
        with machine.lock:
            return {
                "time": machine.clock.now(),
                "regions": [
                    [region.bus.name, region.base, region.name, *numbers] for region, numbers in regions.items()
                ],
                "interrupts": [[pin.name, ", ".join(pin.sources), pin.count] for pin in pc.pins if pin.count],
                "unclaimed": [
                    [key.space, key.address, "write" if key.is_write else "read", count]
                    for key, count in machine.unclaimed.most_common(20)
                ],
            }

    paths: list[AccessPath] = [path for vcpu in machine.vcpus for path in (vcpu.mmio_path, vcpu.pio_path)]
    for path in paths:
        path.observe(observe)
    try:
        yield counts
    finally:
        for path in paths:
            path.ignore(observe)
