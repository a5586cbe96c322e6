"""The guest's serial console on the terminal: `Console`, and the signals that must not skip its clean-up.

Bytes the guest sends go straight to standard output. With a terminal as standard input it is put in raw mode,
so that each key reaches the guest as it is typed; Ctrl-A X leaves, and Ctrl-A Ctrl-A is a Ctrl-A.
Standard input that is no terminal is handed on as it is, once the guest raises RTS: what came earlier would
be lost when its driver clears the receive FIFO.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from typing import Final

from iobus.cli.ending import LAST_RESORT
from iobus.cli.outcome import Status
from iobus.devices.uart import LOOP, RTS
from iobus.exits import KickExit
from iobus.pc.pc import Pc

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

_CTRL_A: Final = 0x01
_RTS_POLL_SECONDS: Final = 0.01
_CHUNK: Final = 1024


class Terminated(BaseException):
    """A signal that asks the process to end; as KeyboardInterrupt, no error to be caught with others."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within, SIGTERM, SIGHUP and SIGQUIT raise `Terminated`, SIGINT `KeyboardInterrupt`; once, for all of them.

    What then does not end, `LAST_RESORT` does.
    """
    caught = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup
    ]
    raised = False

    def handle(number: int, _: object) -> None:
        nonlocal raised
        LAST_RESORT.ask(128 + number)
        if raised:
            return
        raised = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(number)

    before = [(number, signal.signal(number, handle)) for number in caught]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, also where `fd` is non-blocking. Raises `OSError`."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])


class Console:
    """Give `output` to the `Pc`, then use `open(pc)` around its runs, or `connect(pc)` to have no input."""

    def __init__(self) -> None:
        self.left = False
        """The user typed Ctrl-A X."""
        self.lost: OSError | None = None
        """Standard output failed: there is nobody to run for."""
        self._pc: Pc | None = None
        self._raw = False
        self._mid_line = False
        self._log = b""  # the guest's log, less the lines that were shown
        self._lock = threading.Lock()  # a leaf; output may come with the machine lock held
        self._shared = os.isatty(STDOUT) and os.isatty(STDERR)

    @property
    def closed(self) -> bool:
        """The user left, or standard output failed."""
        return self.left or self.lost is not None

    def output(self, data: bytes) -> None:
        """Show what the guest sends."""
        with self._lock:
            if self.lost is not None:
                return
            self._mid_line = not data.endswith(b"\n")
            try:
                write_all(STDOUT, data)
                return
            except OSError as exc:
                self.lost = exc
        self._stop()

    def log(self, data: bytes) -> None:
        """Show a guest's log on standard output too, a line at a time: it would tear lines of the serial line."""
        self._log += data
        whole = len(self._log) if len(self._log) >= _CHUNK else self._log.rfind(b"\n") + 1
        self._show_log(whole)

    def _show_log(self, count: int) -> None:
        lines, self._log = self._log[:count], self._log[count:]
        if lines:  # they end with a newline alone
            self.output(lines.replace(b"\n", b"\r\n") if self._raw else lines)

    def say(self, line: str) -> None:
        """Show a line of our own on standard error, which may be the same terminal."""
        with self._lock, contextlib.suppress(OSError):
            end = "\r\n" if self._raw else "\n"
            start = end if self._shared and self._mid_line else ""
            self._mid_line = False
            write_all(STDERR, f"{start}{line}{end}".encode(errors="backslashreplace"))

    def connect(self, pc: Pc) -> None:
        """Stop `pc` when standard output fails."""
        self._pc = pc

    @contextlib.contextmanager
    def open(self, pc: Pc) -> Iterator[None]:
        """Connect standard input to the guest of `pc`; the terminal is restored however this is left."""
        self.connect(pc)
        wake_end, our_end = os.pipe()
        reader = threading.Thread(target=self._read_input, args=(wake_end,), name="iobus-console", daemon=True)
        try:
            with self._raw_terminal():
                reader.start()
                try:
                    yield
                finally:
                    self._show_log(len(self._log))
                    os.close(our_end)  # wakes the reader
                    our_end = -1
                    reader.join()
        finally:
            for fd in (wake_end, our_end):
                if fd >= 0:
                    os.close(fd)

    @contextlib.contextmanager
    def _raw_terminal(self) -> Iterator[None]:
        if not os.isatty(STDIN):
            yield
            return
        before = termios.tcgetattr(STDIN)

        def restore() -> None:
            self._raw = False
            with contextlib.suppress(termios.error):  # the terminal itself may be gone
                termios.tcsetattr(STDIN, termios.TCSANOW, before)

        try:
            with LAST_RESORT.before(restore):
                tty.setraw(STDIN, termios.TCSANOW)
                self._raw = True
                self._greet()
                yield
        finally:
            restore()

    def _greet(self) -> None:
        self.say("iobus: the console is the guest's; Ctrl-A X leaves")

    def _stop(self) -> None:
        LAST_RESORT.ask(Status.DEVICE_ERROR)
        if self._pc is not None:
            self._pc.machine.stop(KickExit())

    # The reader's thread.

    def _read_input(self, wake: int) -> None:
        assert self._pc is not None
        handle = self._typed() if os.isatty(STDIN) else self._piped(wake)
        poll = select.poll()
        poll.register(STDIN, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if wake in ready:
                return
            try:
                data = os.read(STDIN, _CHUNK)
            except BlockingIOError:
                continue
            except OSError:  # closed from the start, or a terminal that went away
                return
            if not data:  # the end of the input is not the end of the guest
                return
            handle(data)

    def _typed(self) -> Callable[[bytes], None]:
        escaped = False

        def handle(data: bytes) -> None:
            nonlocal escaped
            keys = bytearray()
            for key in data:
                if escaped and key in b"xX":
                    self.left, escaped = True, False
                    self._stop()  # again each time
                    continue
                if not escaped and key == _CTRL_A:
                    escaped = True
                    continue
                if escaped and key != _CTRL_A:
                    keys.append(_CTRL_A)
                escaped = False
                keys.append(key)
            if keys and not self.left:
                self._type(bytes(keys))

        return handle

    def _type(self, keys: bytes) -> None:
        """Give the guest what was typed on the terminal."""
        pc = self._pc
        assert pc is not None
        pc.machine.clock.call_soon(lambda: pc.type(keys))  # not here: a device that hangs has the lock

    def _piped(self, wake: int) -> Callable[[bytes], None]:
        def handle(data: bytes) -> None:
            pc = self._pc
            assert pc is not None
            while pc.uart.state.mcr & (RTS | LOOP) != RTS:
                if select.select([wake], [], [], _RTS_POLL_SECONDS)[0]:
                    return
            pc.type(data)

        return handle
