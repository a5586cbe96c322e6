"""The way into a guest for tests: a shell that takes scripts from a window of RAM, and answers on a serial line.

Below `guest.py`, which runs the machine. Three things are the agent's alone, so that nothing a test does to the
console touches them: the second serial port, a piece of RAM that Linux knows as reserved (`WINDOW`), and PID 1.

    host                                    guest, PID 1
    script into the window
    "PAGES\\n" on COM2            ------>    copies the window to a file, runs it in a shell of its own
    output, byte by byte         <------    standard output and standard error
    marker with the exit status  <------    when that shell has ended

The window is read through /dev/mem, as fast as memory, so a file of any content and size comes in by it. COM2 is the
terminal of PID 1 and what it runs: Ctrl-C from the host ends what a shell waits for.
"""

from __future__ import annotations

import secrets
from typing import Final

from iobus.boot.handover import E820_RAM, E820_RESERVED, E820Entry
from iobus.memory import PAGE_SIZE

WINDOW_SIZE: Final = 4 << 20
"""In bytes. Larger files come in pieces."""
DATA: Final = 1 << 20
"""Where in the window a script's data is; before it is the script."""
TABLE: Final = WINDOW_SIZE - (64 << 10)
"""Where in the window an ACPI table is, of a device that is plugged in; before it is the script's data."""

INTERRUPT: Final = b"\x03"
QUIT: Final = b"\x1c"

INIT: Final = """\
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
exec </dev/ttyS1 >/dev/console 2>&1
exec setsid -c sh -c '. /agent'
"""
"""/init. Without a session of its own, whose terminal is COM2, the agent would get no Ctrl-C."""

AGENT: Final = """\
trap : INT QUIT
stty raw -echo isig intr ^C quit ^\\\\ susp undef
mount -o remount,ro /
mkfifo /run/out
exec 3<>/run/out
relay() {{ (trap '' INT QUIT; exec cat <&3 >/dev/ttyS1 2>/dev/null) & relay=$!; }}
relay
dmesg -n 8
find /dev >/run/dev
printf '{hello}' >&3
while :; do
    read -r pages || continue
    dd if=/dev/mem of=/run/script bs={page} skip={skip} count="$pages" 2>/dev/null
    read -r nonce </run/script
    (trap - INT QUIT; cd /tmp; . /run/script) </dev/null >&3 2>&1 3<&-
    status=$?
    kill -0 $relay 2>/dev/null || relay
    printf '\\001%s %d\\002' "$nonce" $status >&3
done
"""
"""The standard output of what runs is a pipe, which `cat` relays: commands behave as they do in scripts."""

HELLO: Final = b"iobus agent\n"


def agent(window: int) -> bytes:
    """Return the agent's script for a window at guest physical address `window`."""
    hello = HELLO.decode().replace("\n", "\\n")
    return AGENT.format(hello=hello, page=PAGE_SIZE, skip=window // PAGE_SIZE).encode()


def memory_map(usable: list[E820Entry], window: int) -> list[E820Entry]:
    """Return the memory map `usable` with the window cut out of it as reserved. RAM must follow it.

    /dev/mem gives access below the end of RAM, where that is not RAM to Linux.
    """
    end = window + WINDOW_SIZE
    result = [E820Entry(window, WINDOW_SIZE, E820_RESERVED)]
    for start, size, kind in usable:
        if kind != E820_RAM or start + size <= window or end <= start:
            result.append(E820Entry(start, size, kind))
            continue
        pieces = ((start, window), (end, start + size))
        result += [E820Entry(low, high - low, E820_RAM) for low, high in pieces if low < high]
    return sorted(result)


class Call:
    """One script on its way: what goes into the window, and the answer as it comes."""

    def __init__(self, script: bytes) -> None:
        nonce = secrets.token_hex(8)
        text = b"#%s\n%s\n" % (nonce.encode(), script)
        self._marker: Final = f"\x01#{nonce} ".encode()
        self.script: Final = text + b"\n" * (-len(text) % PAGE_SIZE)
        """To be put at the window's start: whole pages."""
        self.request: Final = b"%d\n" % (len(self.script) // PAGE_SIZE)
        """To be sent."""
        self.output = bytearray()
        self.abandoned = False
        """Nobody waits for it any more: it is to be ended at once."""
        self.status: int | None = None
        """The exit status, once it has come."""

    def receive(self, data: bytes) -> bool:
        """Take what came from COM2; return whether the answer is whole."""
        self.output += data
        if not data.endswith(b"\x02"):
            return False
        at = self.output.rfind(self._marker)
        if at < 0:
            return False
        self.status = int(self.output[at + len(self._marker) : -1])
        del self.output[at:]
        return True
