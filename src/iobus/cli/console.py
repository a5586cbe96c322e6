"""The terminal as the guest's serial console: raw while it runs, restored however that ends.

Typed keys go to the guest; Ctrl-A X leaves, Ctrl-A Ctrl-A sends a Ctrl-A.
Input that is no terminal is given to the guest as it comes; output that is none stays plain.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator

from iobus.exits import KickExit
from iobus.pc.pc import Pc

_ESCAPE, _LEAVE = 0x01, b"xX"


class Console:
    """Connects standard input and output to a PC's serial line."""

    def show(self, data: bytes) -> None:
        """Write what the guest sent."""
        stream = sys.stdout.buffer
        stream.write(data)
        stream.flush()

    @contextlib.contextmanager
    def attached(self, pc: Pc) -> Iterator[None]:
        """Feed the guest from standard input, which is raw meanwhile if it is a terminal."""
        try:
            fd = sys.stdin.fileno()
            is_terminal = os.isatty(fd)
        except (ValueError, OSError):  # no standard input
            yield
            return
        saved = termios.tcgetattr(fd) if is_terminal else None
        stop_read, stop_write = os.pipe()
        reader = threading.Thread(target=self._feed, args=(pc, fd, stop_read, is_terminal), daemon=True)
        handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            if saved is not None:
                tty.setraw(fd)
            reader.start()
            yield
        finally:
            os.write(stop_write, b"x")
            reader.join()
            os.close(stop_read)
            os.close(stop_write)
            if saved is not None:
                termios.tcsetattr(fd, termios.TCSADRAIN, saved)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    @staticmethod
    def _feed(pc: Pc, fd: int, stop: int, is_terminal: bool) -> None:
        escaped = False
        while True:
            ready, _, _ = select.select([fd, stop], [], [])
            if stop in ready:
                return
            data = os.read(fd, 1024)
            if not data:
                return
            if not is_terminal:
                pc.type(data)
                continue
            typed = bytearray()
            for byte in data:
                if escaped:
                    escaped = False
                    if byte in _LEAVE:
                        pc.machine.stop(KickExit())
                        return
                    typed.append(byte)
                elif byte == _ESCAPE:
                    escaped = True
                else:
                    typed.append(byte)
            if typed:
                pc.type(bytes(typed))


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)
