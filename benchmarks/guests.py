"""The guests that `boot.py`, `guest.py` and `testing.py` run, as a process on iobus and as one on QEMU TCG.

Both get the same kernel, initrd, command line and memory, and a pipe as the serial line. Times are
taken here, by one clock, when the text that a guest printed arrives: no guest's clock is trusted.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, sleep
from typing import Final, NamedTuple, Self

from benchmarks.report import QEMU
from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd
from iobus.testing import agent
from iobus.testing.guest import COMMAND_LINE as FIXTURE_COMMAND_LINE
from iobus.testing.guest import guest_initrd

MEBIBYTES: Final = 256
COMMAND_LINE: Final = "console=ttyS0 panic=-1"
UP: Final = b"bench: up"
BEGIN: Final = b"bench: begin"
END: Final = b"bench: end"

# Each typed line is one timed run; without a line the guest waits, halted. The loop is the guest's own
# shell, and /bin/busybox by its path is a new process. What fails ends the guest, and so the benchmark.
INIT: Final = """\
set -e
stty -echo
echo bench: up
while read -r command count; do
    echo bench: begin
    case $command in
    syscalls) dd if=/dev/zero of=/dev/null bs=1 count=$count 2>/dev/null ;;
    forks) while [ $count -gt 0 ]; do /bin/busybox true; count=$((count - 1)); done ;;
    esac
    echo bench: end
done
"""

_ROOT: Final = Path(__file__).parents[1]


class GuestError(Exception):
    """A guest that did not do what it was to do: the sentence says what, and shows its last output."""


class Files(NamedTuple):
    """What both sides boot."""

    kernel: Path
    initrd: Path


class Usage(NamedTuple):
    """What a guest's process has used, in seconds of CPU time."""

    user: float
    system: float


@contextlib.contextmanager
def files() -> Iterator[Files]:
    """Have kernel and initrd at hand. Raises `GuestUnavailableError` where there is no guest to be had."""
    kernel = debian.cloud_kernel(progress=_progress)
    busybox = debian.busybox(progress=_progress)
    with tempfile.TemporaryDirectory(prefix="iobus-bench-") as directory:
        initrd = Path(directory, "initrd.cpio")
        initrd.write_bytes(busybox_initrd(busybox.read_bytes(), INIT))
        yield Files(kernel, initrd)


def on_iobus(files: Files, cpus: int = 1, engine: str = "unicorn") -> Guest:
    """Start the guest on iobus."""
    return Guest(
        "iobus", sys.executable, "-m", "benchmarks.iobus_guest",
        str(files.kernel), str(files.initrd), COMMAND_LINE, str(MEBIBYTES), str(cpus), engine,
    )  # fmt: skip


def on_qemu(files: Files, *more: str, cpus: int = 1, accelerator: str = "tcg", machine: str = "pc") -> Guest:
    """Start the guest on QEMU, by default on its TCG; `more` arguments may add devices."""
    return Guest(
        "QEMU", QEMU, "-M", machine, "-accel", accelerator, "-m", str(MEBIBYTES), "-smp", str(cpus), "-display", "none",
        "-nodefaults", "-no-reboot", "-serial", "stdio", "-kernel", str(files.kernel), "-initrd", str(files.initrd),
        "-append", COMMAND_LINE, *more,
    )  # fmt: skip


FIXTURE_UP: Final = agent.HELLO.strip()


@contextlib.contextmanager
def fixture_files() -> Iterator[Files]:
    """Have what the fixture `guest` boots at hand. Raises `GuestUnavailableError`."""
    kernel = debian.cloud_kernel(progress=_progress)
    with tempfile.TemporaryDirectory(prefix="iobus-bench-") as directory:
        initrd = Path(directory, "initrd.cpio")
        initrd.write_bytes(guest_initrd())
        yield Files(kernel, initrd)


def fixture_on_iobus() -> Guest:
    """Start the guest of the fixture, as the fixture does."""
    return Guest("iobus", sys.executable, "-m", "benchmarks.fixture_guest")


def fixture_on_qemu(files: Files) -> Guest:
    """Start the same on QEMU's TCG, with its second serial line here."""
    return Guest(
        "QEMU", QEMU, "-M", "pc", "-accel", "tcg", "-m", str(MEBIBYTES), "-display", "none", "-nodefaults",
        "-no-reboot", "-serial", "null", "-serial", "stdio", "-kernel", str(files.kernel),
        "-initrd", str(files.initrd), "-append", FIXTURE_COMMAND_LINE,
    )  # fmt: skip


def qemu_missing() -> str:
    """Return why there is no QEMU to compare with, or nothing."""
    return "" if shutil.which(QEMU) else f"{QEMU} is not installed"


class Guest:
    """A running guest. `start` is when its process was asked for, on the clock of `wait_for`."""

    def __init__(self, name: str, *command: str) -> None:
        self.name: Final = name
        self.start: Final = perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=_ROOT, bufsize=0
        )
        self._output = b""
        self._arrived = self.start
        self._usage = Usage(0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def wait_for(self, text: bytes, seconds: float = 120, *, pause: float = 0) -> float:
        """Return when `text` had arrived, with all that came before it taken as seen. Raises `GuestError`.

        With a `pause`, in seconds, output is looked at so seldom: where the guest has but this process's one CPU, a
        look at each character takes more of it than the guest does.
        """
        deadline = perf_counter() + seconds
        while text not in self._output:
            sleep(pause)
            self._receive(text, deadline)
        self._output = self._output.split(text, 1)[1]
        return self._arrived

    def type(self, data: bytes) -> None:
        """Send `data` to the guest's serial line."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def time(self, line: str) -> float:
        """Type `line` and return the seconds from its BEGIN to its END. Raises `GuestError`."""
        self.type(line.encode() + b"\n")
        begun = self.wait_for(BEGIN)
        return self.wait_for(END) - begun

    def end(self) -> Usage:
        """End the process; return what it has used."""
        process = self._process
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)  # not kill(): where it has ended, that takes its usage away
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._usage = Usage(usage.ru_utime, usage.ru_stime)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        return self._usage

    def _receive(self, text: bytes, deadline: float) -> None:
        stream = self._process.stdout
        assert stream is not None
        ready, _, _ = select.select([stream], [], [], max(0, deadline - perf_counter()))
        data = os.read(stream.fileno(), 65536) if ready else b""
        if not data:
            what = "ended" if ready else "was given up"
            shown = self._output[-600:].decode(errors="replace")
            raise GuestError(f"the guest on {self.name} {what} before it printed {text.decode()!r}; its last:\n{shown}")
        self._arrived = perf_counter()
        self._output += data


def _progress(line: str) -> None:
    print(line, file=sys.stderr)
