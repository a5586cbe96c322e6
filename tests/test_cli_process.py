"""The command as a process: closed and full standard streams, Ctrl-C while it starts, memory the host has not."""

import importlib.metadata
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_rig import HANG, IOBUS, LOAD, POWER_OFF, Files, say

FULL = b"iobus: standard output cannot be written: No space left on device\n"

NOTES = """
class Mine:
    length = 4096
    def __init__(self):
        self.file = open({path!r}, "w")
        assert self.file.fileno() > 2, self.file.fileno()
    def read(self, offset, size): return 0
    def write(self, offset, size, value): pass
"""


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def shell(before: str, *arguments: object, after: str = "") -> "subprocess.CompletedProcess[bytes]":
    """The command, as `sh` starts it after `before`, with the redirections `after`."""
    return subprocess.run(
        ["sh", "-c", f'{before}exec "$@" {after}', "sh", *IOBUS, *map(str, arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_standard_stream_is_nobody_elses(files: Files, closed: tuple[int, ...]) -> None:
    """A file that a device opens does not become standard output, where the guest's console goes."""
    notes = files.path / "notes"
    device = files.device(NOTES.replace("{path!r}", repr(str(notes))))
    done = shell(
        "", "boot", "--kernel", files.kernel(say("hello") + LOAD + POWER_OFF), "--timeout", 30, "--device", device,
        "--trace", after=" ".join(f"{fd}>&-" for fd in closed),
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout == (b"" if 1 in closed else b"hello")
    assert (b"0xd0000000" in done.stderr) == (2 not in closed)
    assert notes.read_bytes() == b""


@pytest.mark.parametrize("command", ["map", "engines", "--version", "--help"])
def test_output_that_cannot_be_written_is_told(command: str) -> None:
    """A full disk: one line with the reason and status 1. With standard output closed there is nobody to tell."""
    for buffered in ("unset PYTHONUNBUFFERED; ", "export PYTHONUNBUFFERED=1; "):
        done = shell(buffered, command, after=">/dev/full")
        assert (done.returncode, done.stderr) == (1, FULL)
    done = shell("", command, after=">&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("entry", ["python -m iobus", "the console script"])
def test_ctrl_c_while_the_command_is_imported(files: Files, entry: str) -> None:
    """It ends with 130 and one line, not with a traceback out of the imports."""
    files.write("argparse.py", "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n")
    command = IOBUS
    if entry != "python -m iobus":
        (script,) = importlib.metadata.entry_points(group="console_scripts", name="iobus")
        command = [sys.executable, "-c", f"import sys; from {script.module} import {script.attr} as m; sys.exit(m())"]
    done = subprocess.run(
        [*command, "map"], env={"PYTHONPATH": str(files.path)}, capture_output=True, timeout=60, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"iobus: interrupted\n")


def test_memory_that_the_host_has_not_is_told(files: Files) -> None:
    """Within what a PC may have, but more than the process gets: one line and status 2."""
    for arguments in (("map",), ("boot", "--kernel", files.kernel(HANG), "--engine", "unicorn")):
        done = shell("ulimit -v 16000000; ", *arguments, "--memory", "64G")
        assert done.returncode == 2
        assert done.stderr.startswith(b"iobus: --memory: the host has no room for ")
        assert done.stderr.endswith(b"(Cannot allocate memory); give the guest less\n")
        assert done.stderr.count(b"\n") == 1


def test_user_is_every_engines_place_of_interrupt_controllers(files: Files) -> None:
    """--irqchip user, the default, may be said with any engine; the others are KVM's."""
    kernel = files.kernel(POWER_OFF)
    assert shell("", "boot", "--kernel", kernel, "--engine", "unicorn", "--irqchip", "user").returncode == 0
    done = shell("", "boot", "--kernel", kernel, "--engine", "unicorn", "--irqchip", "split")
    assert (done.returncode, done.stderr) == (1, b"iobus: irqchip 'split' is for the engine kvm; use 'user'\n")


TRACE = (
    '{"iobus-trace": 1}\n'
    '{"time":1,"vcpu":0,"op":"read","space":"mmio","address":"0xd0000000","size":4,"value":"0x0","region":"Mine",'
    '"device":"Mine","offset":0,"registers":[],"rip":"0x0","taken":1}\n'
)
PLAIN = "class Mine:\n length = 4096\n def read(self, o, s): return 0\n def write(self, o, s, v): pass\n"


def test_a_trace_that_was_cut_off_is_used_up_to_there(files: Files) -> None:
    """A killed run leaves part of a line at the end, which is told; elsewhere, or as a whole line, it is no trace."""
    torn, page = TRACE + TRACE.splitlines()[1][:40], files.path / "page.html"
    trace = files.write("t.jsonl", torn)
    note = f"iobus: {trace}: the trace ends in the middle of its line 3\n".encode()
    for arguments in (("replay", trace, "--device", files.device(PLAIN)), ("report", trace, "--output", page)):
        done = shell("", *arguments)
        assert done.returncode == 0
        assert done.stderr.startswith(note)
        trace.write_text(torn + "\n")
        assert shell("", *arguments).returncode == 2
        trace.write_text(torn)
    trace.write_text(TRACE[:10])  # not even its first line
    assert shell("", "report", trace, "--output", page).returncode == 2
