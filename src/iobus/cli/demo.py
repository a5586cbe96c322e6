"""`iobus demo`: Debian's kernel meets a Python device. Shows each access to it, then sums up."""

from __future__ import annotations

import argparse
import time
from collections import Counter

from iobus.bus import Region
from iobus.cli.arguments import make_pc
from iobus.cli.boot import COMMAND_LINE, Guest, busybox, debian_kernel, run_guest
from iobus.cli.demo_device import DemoDevice
from iobus.exits import Exit

BASE = 0xD0000000
_MARK = "iobus-demo: user space"
_INIT = f"""\
mount -t proc proc /proc
echo "{_MARK}"
say() {{ echo "# $*"; "$@"; }}
say devmem {BASE:#x} 32
say devmem {BASE + 4:#x} 32 0xC0FFEE
say devmem {BASE + 4:#x} 32
say devmem {BASE + 8:#x} 32
say grep -E "CPU|IO-APIC|LOC" /proc/interrupts
poweroff -f
"""


class _Show:
    """Prints the console and the accesses as they come, and keeps what the summary needs."""

    def __init__(self) -> None:
        self.accesses: Counter[str] = Counter()
        self.user_space_at: float | None = None
        self._started = time.monotonic()
        self._line = b""

    def console(self, data: bytes) -> None:
        self._line += data
        *lines, self._line = self._line.split(b"\n")
        for line in lines:
            if _MARK.encode() in line and self.user_space_at is None:
                self.user_space_at = time.monotonic() - self._started
            print(f"  guest | {line.decode(errors='replace').rstrip()}", flush=True)

    def device(self, region: Region, address: int, size: int, read: int | None, written: int | None) -> None:
        if isinstance(region.device, DemoDevice):
            arrow = f"-> {read:#x}" if written is None else f"<- {written:#x}"
            verb = "read " if written is None else "write"
            print(
                f" access | {verb} {address:#x} ({size} bytes) {arrow}  DemoDevice+{address - region.base:#x}",
                flush=True,
            )
        self.accesses[region.name] += 1

    def port(self, region: Region, address: int, size: int, read: int | None, written: int | None) -> None:
        self.accesses[region.name] += 1

    def summary(self, unclaimed: int) -> None:
        booted = "never" if self.user_space_at is None else f"after {self.user_space_at:.1f} s"
        print(f"\nuser space {booted}, all in {time.monotonic() - self._started:.1f} s; accesses by device:")
        for name, count in self.accesses.most_common():
            print(f"  {count:>8,}  {name}")
        print(f"  {unclaimed:>8,}  nobody's (read as all ones)")


def run(options: argparse.Namespace) -> Exit:
    """Run the demo. Raises `GuestUnavailableError` where its guest cannot be fetched."""
    kernel, initrd = debian_kernel(), busybox(_INIT)
    show = _Show()
    pc = make_pc(options.memory, options.engine, show.console)
    try:
        pc.attach(DemoDevice(), BASE)
        for bus in (pc.machine.mmio, *(vcpu.mmio for vcpu in pc.machine.vcpus)):
            bus.observer = show.device
        pc.machine.pio.observer = show.port
        print(f"Debian's kernel, with a {DemoDevice.__name__} at {BASE:#x} (src/iobus/cli/demo_device.py):", flush=True)
        exit = run_guest(pc, Guest(kernel, initrd, f"{COMMAND_LINE} quiet"), options.timeout, reboot=False)
        show.summary(pc.machine.unclaimed.total())
        return exit
    finally:
        pc.machine.close()
