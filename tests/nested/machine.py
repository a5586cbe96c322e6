"""The nested guest as a process: QEMU with the image and a job, its console, and the results it tells.

Stands on `image.py`. Nothing is written to disk: the initrd is in anonymous memory, the console and the
results come through pipes. QEMU outlives neither its time limit nor the process that started it.

The guest has two serial lines. The first is its console. On the second come lines of JSON: what
`inside/nested_report.py` tells of tests, and from init `{"exit": N}`, the job's status.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .image import PROJECT, RigUnavailableError, image, job_archive

QEMU: Final = "qemu-system-x86_64"
MACHINE: Final = ("-machine", "q35", "-accel", "tcg", "-cpu", "EPYC,+svm,+npt", "-m", "2G")
COMMAND_LINE: Final = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off"
"""The kernel's. A kernel that breaks resets, which ends QEMU at once; mitigations cost time and guard nothing here."""

_LAST_LINES: Final = 60


@dataclass(frozen=True, slots=True)
class Result:
    """What one test inside came to."""

    test: str
    """Its node id; with the phase or the subtest where it is not the test itself."""
    outcome: str
    """"passed", "failed" or "skipped"."""
    text: str
    """The failure and what was captured, or the reason of the skip."""
    seconds: float


@dataclass(slots=True)
class Outcome:
    """What one job came to."""

    status: int | None = None
    """The job's exit status; None if it did not end."""
    results: list[Result] = field(default_factory=list)
    running: str = ""
    """The test that has begun and not ended."""
    console: list[str] = field(default_factory=list)
    """The console's lines."""
    errors: list[str] = field(default_factory=list)
    """QEMU's own lines."""
    seconds: float = 0.0
    """How long it took, boot included, the making of the image not."""
    problem: str = ""
    """Why the job did not end, in a sentence; "" if it did."""

    def report(self) -> str:
        """Say all there is to say of a job that did not end: why, in which test, QEMU's lines, the console's last."""
        running = [f"running: {self.running}"] if self.running else []
        console = [f"the console's last lines, of {len(self.console)}:", *self.console[-_LAST_LINES:]]
        return "\n".join([self.problem, *running, *self.errors, *console])


def missing() -> str:
    """Say what the rig lacks on this machine, as far as that can be told at once; "" if nothing."""
    return "" if shutil.which(QEMU) else f"{QEMU} is not installed"


def run(
    command: Sequence[str],
    *,
    seconds: float,
    tree: Path = PROJECT,
    cpus: int = 1,
    carried: bytes = b"",
    shown: Callable[[str], object] = lambda line: None,
) -> Outcome:
    """Run `command` in a nested guest with `cpus` CPUs, in the directory of the project as it is in `tree`.

    All of it, boot included, has `seconds` seconds, after which QEMU is killed. `shown` is given each line of the
    console as it comes; `carried` is another archive to unpack there. Raises `RigUnavailableError`, and
    `GuestUnavailableError` where the kernel or BusyBox cannot be had.
    """
    if reason := missing():
        raise RigUnavailableError(reason)
    made = image()
    outcome = Outcome()
    begun = time.monotonic()
    with (
        _memory_file(made.system, carried, job_archive(tree, command)) as initrd,
        _qemu(made.kernel, initrd, cpus) as pipes,
    ):
        try:
            for source, line in _lines(pipes, begun + seconds):
                if source is _Source.RESULTS:
                    _take(outcome, line)
                elif source is _Source.ERRORS:
                    outcome.errors.append(line)
                else:
                    outcome.console.append(line)
                    shown(line)
        except TimeoutError:
            outcome.problem = f"the nested guest did not end within its limit of {seconds:g} seconds"
        else:
            if outcome.status is None:
                outcome.problem = "the nested guest ended before its job did"
    outcome.seconds = time.monotonic() - begun
    return outcome


def _take(outcome: Outcome, line: str) -> None:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:  # something inside wrote to the line: seen where the rest is
        outcome.console.append(line)
        return
    if "exit" in record:
        outcome.status = record["exit"]
    elif "begins" in record:
        outcome.running = record["begins"]
    elif "ends" in record:
        outcome.running = ""
    else:
        outcome.results.append(Result(**record))


class _Source(enum.Enum):
    CONSOLE = enum.auto()
    RESULTS = enum.auto()
    ERRORS = enum.auto()


def _lines(pipes: Mapping[int, _Source], end: float) -> Iterator[tuple[_Source, str]]:
    """Yield the lines from all pipes until each has ended. Raises `TimeoutError` at the monotonic time `end`."""
    rest = dict.fromkeys(_Source, b"")
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        late = False
        while selector.get_map() and not late:
            late = time.monotonic() >= end
            for key, _ in selector.select(max(0.0, end - time.monotonic())):
                data, source = os.read(key.fd, 1 << 16), pipes[key.fd]
                *whole, rest[source] = (rest[source] + data).split(b"\n")
                yield from ((source, _text(line)) for line in whole)
                if not data:
                    selector.unregister(key.fd)
    yield from ((source, _text(line)) for source, line in rest.items() if line)
    if late:
        raise TimeoutError


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


@contextlib.contextmanager
def _memory_file(*parts: bytes) -> Iterator[int]:
    """Give a descriptor of an anonymous file with these contents."""
    descriptor = os.memfd_create("initrd")
    with open(descriptor, "wb") as file:  # noqa: PTH123
        for part in parts:
            file.write(part)
        file.flush()
        yield descriptor


@contextlib.contextmanager
def _qemu(kernel: Path, initrd: int, cpus: int) -> Iterator[Mapping[int, _Source]]:
    """Start QEMU and give the pipes from it; it is gone in the end."""
    results, write_end = os.pipe()
    # Killed by the kernel when we are: a test session that is killed leaves no QEMU behind.
    leash = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
    command = (
        *leash, QEMU, *MACHINE, "-smp", str(cpus), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(kernel), "-initrd", f"/dev/fd/{initrd}", "-append", COMMAND_LINE,
        "-serial", "stdio", "-serial", f"file:/dev/fd/{write_end}",
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, results)
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=(initrd, write_end), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(write_end)
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdout is not None and process.stderr is not None
        yield {
            process.stdout.fileno(): _Source.CONSOLE,
            process.stderr.fileno(): _Source.ERRORS,
            results: _Source.RESULTS,
        }
