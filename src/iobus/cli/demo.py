"""`iobus demo`: Linux boots with the example device, whose registers its init then reads and writes.

The accesses are shown between the lines of the guest's console as they arrive, and counted for every device.
"""

from __future__ import annotations

import os
import time
from collections import Counter

from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd
from iobus.boot.linux import LinuxKernel
from iobus.bus import Region
from iobus.cli import demo_device
from iobus.cli.boot import COMMAND_LINE, LinuxGuest, make_pc, progress_to, run
from iobus.cli.console import STDOUT, Console
from iobus.cli.demo_device import Scratch
from iobus.cli.outcome import Status, describe, describe_lost
from iobus.exits import PowerOffExit
from iobus.path import Access

ADDRESS = 0xD0000000
MEMORY = 256 << 20
TIMEOUT_SECONDS = 300.0
"""A guest that does not come to its end, on however slow a machine."""

WRITTEN = 0xC0FFEE

_USER_SPACE = "User space is up"
_REGISTERS = {demo_device.ID: "ID", demo_device.SCRATCH: "SCRATCH", demo_device.READS: "READS"}

INIT = f"""\
echo "{_USER_SPACE}."
mount -t proc proc /proc
run() {{ echo "# $*"; "$@"; }}
run uname -srm
run busybox devmem {ADDRESS + demo_device.ID:#x} 32
run busybox devmem {ADDRESS + demo_device.SCRATCH:#x} 32
run busybox devmem {ADDRESS + demo_device.SCRATCH:#x} 32 {WRITTEN:#x}
run busybox devmem {ADDRESS + demo_device.SCRATCH:#x} 32
run busybox devmem {ADDRESS + demo_device.READS:#x} 32
run poweroff -f
"""


class _Screen(Console):
    """The guest's console on standard output, with lines of our own between its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.started = time.monotonic()
        self.user_space: float | None = None
        """Seconds to the first line of user space."""
        self._line = bytearray()
        self._waiting: list[str] = []
        coloured = os.isatty(STDOUT) and "NO_COLOR" not in os.environ
        self._form = "\x1b[1;36m[iobus] {}\x1b[0m\n" if coloured else "[iobus] {}\n"

    def output(self, data: bytes) -> None:
        """Show what the guest sends."""
        super().output(data)
        self._line += data
        if not data.endswith(b"\n"):
            return
        if self.user_space is None and self._line.startswith(_USER_SPACE.encode()):
            self.user_space = time.monotonic() - self.started
        self._line.clear()
        self.flush()

    def mark(self, text: str) -> None:
        """Show a line of ours once the guest's own line has ended."""
        self._waiting.append(text)
        if not self._line:
            self.flush()

    def flush(self) -> None:
        """Show the lines that wait."""
        waiting, self._waiting = self._waiting, []
        for text in waiting:
            super().output(self._form.format(text).encode())


def demo() -> tuple[int, str]:
    """Run the demo; return the status and a sentence for standard error. Raises `IobusError`."""

    screen, device = _Screen(), Scratch()
    progress = progress_to(screen.say)
    kernel = LinuxKernel.read(debian.cloud_kernel(progress=progress))
    guest = LinuxGuest(kernel, busybox_initrd(debian.busybox(progress=progress).read_bytes(), INIT), COMMAND_LINE)
    counts: Counter[Region] = Counter()
    with make_pc(MEMORY, "auto", screen.output, screen.say) as pc:
        machine = pc.machine
        screen.connect(pc)
        pc.attach(device, ADDRESS)

        def observe(access: Access) -> None:
            if access.region is None:
                return
            counts[access.region] += 1
            if access.region.device is device:
                register = _REGISTERS.get(access.offset, "-")
                how = f"writes {register:7} <-" if access.is_write else f"reads  {register:7} ->"
                where = f"({access.size} bytes at {access.address:#x})"
                screen.mark(f"{machine.clock.now() / 1e9:.3f} s  the guest {how} {access.value:#010x}  {where}")

        for vcpu in machine.vcpus:
            vcpu.mmio_path.observe(observe)
            vcpu.pio_path.observe(observe)
        guest.load(pc)
        screen.started = time.monotonic()
        exit = run(pc, guest, timeout=TIMEOUT_SECONDS, reboot=False, stopped=lambda: screen.closed)
        took = time.monotonic() - screen.started
        screen.flush()
        if screen.lost is not None:
            return describe_lost(screen.lost)
        if not isinstance(exit, PowerOffExit):
            status, what = describe(exit, machine.vcpus[0]) if exit is not None else (Status.OK, "")
            return status or Status.FAILED, what or "the guest reset the machine instead of powering off"
        screen.mark("The guest powered off.")
        _summarise(screen, took, counts, sum(machine.unclaimed.values()), len(machine.unclaimed))
    if device.state.scratch != WRITTEN:
        return Status.FAILED, f"the guest left {device.state.scratch:#x} in SCRATCH, not {WRITTEN:#x}"
    return Status.OK, ""


def _summarise(screen: _Screen, took: float, counts: Counter[Region], unclaimed: int, places: int) -> None:
    if screen.user_space is not None:
        screen.mark(f"Boot to user space: {screen.user_space:.1f} s; all of it: {took:.1f} s.")
    screen.mark("Accesses by device:")
    for region, count in counts.most_common():
        screen.mark(f"{count:>9}  {region.name} ({region.bus.name} {region.base:#x})")
    screen.mark(f"{unclaimed:>9}  claimed by none, at {places} places: reads gave all ones")
