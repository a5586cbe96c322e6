"""What tests of the command are made of: guests of a few instructions, the command as a process, a terminal."""

import contextlib
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from test_boot_linux import bzimage

IOBUS = [sys.executable, "-m", "iobus"]
EXAMPLE = Path(__file__).parent.parent / "examples" / "scratch.py"

# Guests: x86-64 code. RBX points to the device of most tests.
DEVICE = 0xD0000000
HANG = b"\xeb\xfe"  # jmp $
TRIPLE_FAULT = b"\x0f\x0b"  # ud2, with nothing but zeros for an IDT
HALT = b"\xfa\xf4"  # cli; hlt
LOAD = b"\xbb" + struct.pack("<I", DEVICE) + b"\x8b\x03"  # mov ebx, DEVICE; mov eax, [rbx]
STORE = b"\xbb" + struct.pack("<I", DEVICE) + b"\x89\x03"


def out(port: int, *data: int) -> bytes:
    """mov dx, port; then for each byte mov al, byte; out dx, al."""
    return b"\x66\xba" + struct.pack("<H", port) + b"".join(bytes((0xB0, byte, 0xEE)) for byte in data)


POWER_OFF = b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef" + HANG  # PM1_CNT = SLP_EN | S5
RESET = out(0xCF9, 0x02, 0x06) + HANG
RAISE_RTS = out(0x3FC, 0x03)


def say(text: str) -> bytes:
    return out(0x3F8, *text.encode())


# Until 'q': wait for LSR.DR, echo the character.
ECHO = bytes.fromhex("66bafd03 ec a801 74f7 66baf803 ec ee 3c71 75ed") + POWER_OFF


class Files:
    """A directory with what the command is given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, data: bytes | str) -> Path:
        path = self.path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def kernel(self, code: bytes = HANG) -> Path:
        return self.write("vmlinuz", bzimage(bytes(0x200) + code))

    def device(self, body: str) -> str:
        """A device file, as --device has it."""
        return f"{self.write('mine.py', body)}:Mine@{DEVICE:#x}:0x1000"


def iobus(*arguments: object, data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*IOBUS, *map(str, arguments)], input=data, capture_output=True, timeout=60, check=False)


def run_guest(files: Files, code: bytes, *arguments: object, data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return iobus("boot", "--kernel", files.kernel(code), "--timeout", 30, *arguments, data=data)


class Terminal:
    """The command on a pseudo-terminal of its own, which knows its `size` (columns, lines) if one is given."""

    def __init__(self, *arguments: object, size: tuple[int, int] = (0, 0)) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, size[::-1])
        self.before = termios.tcgetattr(self.slave)
        self.shown = b""
        self.process = subprocess.Popen(
            [*IOBUS, *map(str, arguments)],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, text: bytes, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come; the terminal shows {self.shown[-2000:]!r}"
            self.shown += os.read(self.master, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Wait for the command to end, reading what it shows; return its status."""
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.master], [], [], 0.02)[0]:
                self.shown += os.read(self.master, 65536)
        status = self.process.wait(1)
        while select.select([self.master], [], [], 0)[0]:
            self.shown += os.read(self.master, 65536)
        return status

    def mode(self) -> list[Any]:
        return termios.tcgetattr(self.slave)


@contextlib.contextmanager
def terminal(*arguments: object, size: tuple[int, int] = (0, 0)) -> Iterator[Terminal]:
    it = Terminal(*arguments, size=size)
    try:
        yield it
    finally:
        if it.process.poll() is None:
            it.process.kill()
        it.process.wait()
        os.close(it.slave)
        os.close(it.master)
