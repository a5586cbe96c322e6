"""`Guest`: a booted Linux with a shell, for tests of drivers against devices. The fixture `guest` is one.

Stands on `agent.py`, the way in, and on `pc/` and `boot/`. The machine runs only while a test waits for the guest:
in `run` and what stands on it, and in `wait_for`. So whatever a device raises, it raises in the test, at that line,
and between those calls nothing changes under the test's eyes. `tidy.py` has what happens between two tests.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from iobus.boot import debian
from iobus.boot.handover import e820
from iobus.boot.initrd import busybox_initrd
from iobus.boot.linux import LinuxKernel
from iobus.bus import Bus, Device, IobusError, Region
from iobus.cli.outcome import describe
from iobus.devices.uart import Uart
from iobus.engines import choose
from iobus.exits import KickExit, PowerOffExit, ResetExit, TimeoutExit
from iobus.machine import attach_told
from iobus.memory import PAGE_SIZE
from iobus.pc import acpi, layout
from iobus.pc.pc import Pc
from iobus.testing import agent, hotplug
from iobus.testing.build import build_module
from iobus.testing.faults import Faults, Given, given_to
from iobus.testing.history import History
from iobus.testing.kernel_log import complaints, interrupt_counts
from iobus.testing.modules import dependencies, module_files, parameter
from iobus.testing.watchdog import DeviceHungError, Watch
from iobus.trace import Record

MEMORY: Final = 256 << 20
WINDOW: Final = MEMORY - (8 << 20)
COM2: Final = 0x2F8
IRQ_COM2: Final = 3
COMMAND_LINE: Final = (
    "console=ttyS0 loglevel=7 panic=-1 "
    # The machine stands still between calls, and time goes on: that is no lockup, no stall and no bad clock.
    "nowatchdog rcupdate.rcu_cpu_stall_suppress=1 tsc=reliable"
)
BOOT_SECONDS: Final = 180.0
SECONDS: Final = 60.0
"""How long a command has, unless it is told otherwise, in seconds of the host."""
_GRACE: Final = 3.0  # for a command that Ctrl-C is to end
_LOOK_AGAIN: Final = 0.02


class GuestError(IobusError):
    """The guest did not do what it was to do, or is no more: the sentence says what, with what it last said."""


class GuestTimeoutError(GuestError):
    """A command did not end in its time."""


class KernelError(GuestError):
    """The guest's kernel complained: an oops, a warning, a panic. Its text is in the message."""


class PanicError(KernelError):
    """The guest's kernel panicked, so there is no guest any more. `Guest.kernel_error` may expect it."""


class Result(NamedTuple):
    """How a command in the guest ended."""

    status: int
    """Its exit status, 0-255."""
    data: bytes
    """What it wrote to its standard output and standard error."""

    @property
    def output(self) -> str:
        """`data` as text."""
        return self.data.decode(errors="replace")


class Guest:
    """A Linux of Debian's on an engine of `ENGINES`. Raises `EngineError`, `GuestUnavailableError`; then `boot` it."""

    def __init__(self, engine: str = "auto") -> None:
        self.kernel: Final = debian.cloud_kernel()
        """Its vmlinuz; the modules are in the same package."""
        self._initrd: Final = guest_initrd()
        self._console = bytearray()
        self._call: agent.Call | None = None
        self._hello = b""
        self.pc: Final = Pc(choose.make(engine), memory=MEMORY, console=self._console.extend)
        """The machine's PC: `pc.pins[n].level` and `.count` tell of interrupts."""
        self.machine: Final = self.pc.machine
        self.dead: str = ""
        """Why there is no guest any more; empty while there is one."""
        self.regions: Final[list[Region]] = []
        """What `attach` made, the latest last."""
        self.faults: Final = Faults(self.machine, self.pc.pins)
        """Faults on demand: accesses that fail, interrupts lost or late, a device that is gone."""
        self.history: Final = History(
            self.machine, lambda region: region in self.regions or region in self.faults.regions
        )
        self._watch: Final = Watch(self.machine)
        self._com2: Final = Uart(self.pc.irq(IRQ_COM2, "com2"), self.machine.clock, self._receive)
        self.machine.pio.attach(self._com2, COM2, 8)
        self._event: Final = self.pc.irq(hotplug.IRQ, "hotplug")
        self._slots: dict[hotplug.Slot, str] = {}  # by what is in them, the names of Linux's devices
        self._plugged: list[str] = []
        self._seen = 0  # how much of the console earlier tests have had
        self._forgiven = 0  # up to where complaints have been expected
        self.counted: dict[int, int] = {}
        """What /proc/interrupts had when the test began."""
        self.expected = False
        """Whether a complaint of the kernel has been, in the test that has it now."""

    def boot(self) -> None:
        """Boot, to the agent's first word. Raises `GuestError`."""
        memory = self.machine.memory
        event = hotplug.event_device(WINDOW + agent.TABLE)
        memory.write(layout.ACPI_TABLES, acpi.tables(1, extra_devices=[event]))
        entry = LinuxKernel.read(self.kernel).load(
            memory,
            initrd=self._initrd,
            command_line=COMMAND_LINE,
            acpi_rsdp=layout.ACPI_TABLES,
            e820=agent.memory_map(e820(memory), WINDOW),
        )
        self.machine.vcpus[0].registers = entry.registers()
        if not self._until(lambda: self._hello.endswith(agent.HELLO), BOOT_SECONDS):
            self.give_up(f"it did not boot in {BOOT_SECONDS:g} s")
            raise GuestError(f"the guest did not boot in {BOOT_SECONDS:g} s; its console's last:\n{self._last()}")
        self.new_test()

    def close(self) -> None:
        """End the machine."""
        self.give_up("it was closed")
        self.machine.close()

    def give_up(self, why: str) -> None:
        """Have no guest any more; the first reason counts."""
        self.dead = self.dead or why

    # Commands.

    def run(self, command: str, *, timeout: float = SECONDS, check: bool = False) -> Result:
        """Run a command, or a script of several lines, by BusyBox's shell in /tmp; return how it ended.

        Its standard input is empty. After `timeout` seconds of the host it is ended by Ctrl-C, and
        `GuestTimeoutError` raised. Raises `GuestError` for another status than 0 with `check`, and for a guest that is
        no more; `DeviceError`, `TimerError` and `WatchError` when a device does, after which the command goes on at the
        next call.
        """
        __tracebackhide__ = True
        result = self._run(command.encode(), command, timeout)
        if check and result.status:
            raise GuestError(f"{command!r} ended with status {result.status}:\n{result.output.rstrip()}")
        return result

    def wait_for(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Let the guest run until `condition()`, asked with the machine lock held, is true.

        Raises `TimeoutError` when it is not so after `seconds` of the host, and what `run` does of devices.
        """
        __tracebackhide__ = True
        self._must_live()
        end = time.monotonic() + seconds
        while True:
            with self.machine.lock:
                if condition():
                    return
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the condition was not true after {seconds:g} s")
            self._machine_run(min(left, _LOOK_AGAIN))

    def abandon(self) -> None:
        """Have a command that is still going on ended at once by the next."""
        if self._call is not None:
            self._call.abandoned = True

    # Files and modules.

    def put(self, source: str | Path | bytes, target: str = "") -> str:
        """Copy a file of the host's, or `bytes`, into the guest at `target`, by default /tmp and the file's name.

        Return the path in the guest. A file that is executable stays so. Raises `OSError`, `GuestError`.
        """
        __tracebackhide__ = True
        if isinstance(source, bytes):
            if not target:
                raise ValueError("put(bytes): say where to, as put(data, '/tmp/name')")
            data, mode = source, 0o644
        else:
            path = Path(source)
            data, mode = path.read_bytes(), path.stat().st_mode & 0o111 | 0o644
            target = target or f"/tmp/{path.name}"
        name, piece = shlex.quote(target), agent.TABLE - agent.DATA
        skip = (WINDOW + agent.DATA) // PAGE_SIZE
        for start in range(0, max(1, len(data)), piece):
            part = data[start : start + piece]
            pages = -(-len(part) // PAGE_SIZE)
            copy = f"dd if=/dev/mem bs={PAGE_SIZE} skip={skip} count={pages} 2>/dev/null | head -c {len(part)}"
            script = f"{copy} {'>>' if start else '>'} {name} && chmod {mode:o} {name}"
            self._must_live()
            self._finish()
            self.machine.memory.write(WINDOW + agent.DATA, part)
            result = self._run(script.encode(), f"put {target}", SECONDS)
            if result.status:
                raise GuestError(f"{target} cannot be written in the guest: {result.output.strip()}")
        return target

    def build(self, source: str | Path) -> Path:
        """Build a kernel module for the guest's kernel from one C file; return its .ko, for `insmod`.

        Raises `ModuleBuildError` with what the compiler says. Where there is no compiler or no headers can be had,
        the test skips.
        """
        __tracebackhide__ = True
        return build_module(source, self.kernel)

    def insmod(self, module: str | Path, **parameters: object) -> None:
        """Load a kernel module of the host's into the guest, with its parameters. Raises `GuestError`.

        It is unloaded again when the test ends.
        """
        __tracebackhide__ = True
        path = Path(module)
        target = self.put(path)
        words = [f"{name}={parameter(value)}" for name, value in parameters.items()]
        command = shlex.join(["insmod", target, *words])
        before = len(self._console)
        result = self.run(f"{command}; status=$?; rm {shlex.quote(target)}; exit $status")
        if result.status:
            said = self._console[before:].decode(errors="replace").strip()
            raise GuestError(f"{path.name} cannot be loaded: {result.output.strip()}\n{said}".rstrip())

    def modprobe(self, name: str, **parameters: object) -> None:
        """Load a module of the guest's own kernel package, after those it needs. Raises `GuestError`."""
        __tracebackhide__ = True
        files = module_files(self.kernel)
        loaded = {line.split()[0] for line in self.run("cat /proc/modules").output.splitlines()}
        for needed in dependencies(name, files):
            if needed not in loaded:
                self.insmod(files[needed], **(parameters if needed == name.replace("-", "_") else {}))

    def interrupts(self, number: int) -> int:
        """Return how often Linux had interrupt `number` since the test began, as /proc/interrupts counts it."""
        __tracebackhide__ = True
        counts = interrupt_counts(self.run("cat /proc/interrupts", check=True).output)
        return counts.get(number, 0) - self.counted.get(number, 0)

    # Devices.

    def attach(self, device: Device, at: int, length: int | None = None, **options: Any) -> Region:
        """Attach `device` to the memory-mapped I/O bus while the guest runs; it is gone again when the test ends.

        A device with a method `connect(pc)` gets the PC first, one with `placed(region)` its region then. One with an
        `acpi_id` is plugged in: Linux finds it by ACPI, with its range and the interrupts it took in `connect`, and
        gives it to its driver, now or when that is loaded. Otherwise as `Bus.attach`. Raises `ValueError` where the
        guest has RAM, `GuestError`.
        """
        size = length if length is not None else getattr(device, "length", 1)
        for slot in self.machine.memory.slots:
            if at < slot.base + slot.size and slot.base < at + size:
                raise ValueError(
                    f"{type(device).__name__} at {at:#x}: the guest has RAM there; use an address from "
                    f"{layout.PCI_MMIO[0]:#x} up to {layout.PCI_MMIO[1]:#x}"
                )
        given = self._attach(self.machine.mmio, device, at, length, options)
        if hid := getattr(device, "acpi_id", ""):
            gsis = sorted(self.pc.pins.index(pin) for pin, _ in given.lines)
            self._plug(hotplug.Slot(hid, at, given.region.length, tuple(gsis)))
        return given.region

    def attach_ports(self, device: Device, at: int, length: int | None = None, **options: Any) -> Region:
        """As `attach`, to the ports; Linux is not told of it."""
        return self._attach(self.machine.pio, device, at, length, options).region

    @property
    def accesses(self) -> list[Record]:
        """The latest accesses to what `attach` put on the bus, up to 1000, the latest last."""
        return self.history.accesses

    @property
    def time_limit(self) -> float:
        """How many seconds of the host a device has to answer; 10 unless a test sets it."""
        return self._watch.seconds

    @time_limit.setter
    def time_limit(self, seconds: float) -> None:
        self._watch.seconds = seconds

    def watch(self, on: bool) -> None:
        """Keep what happens, and hold devices to the time limit, or stop doing so."""
        if on:
            self.history.start()
            self._watch.start()
        else:
            self._watch.stop()
            self.history.stop()

    # What the kernel says.

    @property
    def log(self) -> str:
        """What came on the guest's console since the test began: the kernel's messages."""
        return self._console[self._seen :].decode(errors="replace").replace("\r\n", "\n")

    def new_test(self) -> None:
        """Begin anew what is told of one test: the log, and counts."""
        for pin in self.pc.pins:
            pin.count = 0
        self.machine.unclaimed.clear()
        self._seen = self._forgiven = len(self._console)
        self.expected = False

    def check(self) -> None:
        """Raise what a device's callback raised beside a run; `KernelError` for a complaint that nobody expected."""
        __tracebackhide__ = True
        self.machine.settle()
        found = complaints(self._text(self._forgiven))
        if found:
            self._forgiven = len(self._console)
            raise KernelError("the guest's kernel complained:\n" + "\n\n".join(found))

    @contextlib.contextmanager
    def kernel_error(self, match: str = "") -> Iterator[None]:
        """Expect a complaint of the kernel, in which the regular expression `match` is found, by the end of the block.

        Raises `KernelError` when there is another, or none. A panic ends the block, and with it the guest: what comes
        behind the line that led to it is not done. Whatever a device or a command raises meanwhile because of another
        complaint, such as `GuestTimeoutError`, is the test's to handle.
        """
        self.check()
        start = len(self._console)
        with contextlib.suppress(PanicError):
            yield
        found = complaints(self._text(start))
        self._forgiven = len(self._console)
        self.expected = True
        if not any(re.search(match, text) for text in found):
            what = "\n\n".join(found) or "it did not complain at all"
            raise KernelError(f"the guest's kernel was to complain of {match!r}:\n{what}")

    def unplug(self) -> None:
        """Take all devices that were plugged in from their drivers, and hide them."""
        while self._plugged:
            self.run(hotplug.UNPLUG.format(name=self._plugged.pop()), check=True)

    # Within.

    def _attach(self, bus: Bus, device: Device, at: int, length: int | None, options: dict[str, Any]) -> Given:
        given = given_to(
            self.machine, lambda: self.pc.pins, lambda: attach_told(self.pc, bus, device, at, length, options)
        )
        self.faults.attached(given)
        self.regions.append(given.region)
        for pin, _ in given.lines:
            self.history.listen(pin, pin.name)
        return given

    def _plug(self, slot: hotplug.Slot) -> None:
        """Have Linux find the device in `slot`: again, or by a table of its own."""
        name = self._slots.get(slot)
        for other in self._slots:
            shared = set(slot.gsis) & set(other.gsis)
            if shared and slot.is_edge != other.is_edge:
                raise ValueError(
                    f"{slot.hid} has interrupt {shared.pop()} as an earlier {other.hid} had, but one is edge-triggered "
                    "and the other level-triggered, which Linux does not change: use another interrupt"
                )
        if name is None:
            number = len(self._slots) + 1
            table = acpi.ssdt(hotplug.device_of(number, slot))
            self.machine.memory.write(WINDOW + agent.TABLE, table)
            with self.machine.lock:
                self._event.pulse()
            found = self.run(hotplug.FIND.format(number=number))
            if found.status:
                raise GuestError(f"Linux does not find the device {slot} by its ACPI table: {self.log}")
            name = self._slots[slot] = found.output.strip()
        else:
            self.run(hotplug.PLUG.format(name=name), check=True)
        self._plugged.append(name)

    def _receive(self, data: bytes) -> None:
        """What comes from COM2, in the middle of the guest's access."""
        call = self._call
        if call is None:
            self._hello = (self._hello + data)[-len(agent.HELLO) :]
            whole = self._hello == agent.HELLO
        else:
            whole = call.receive(data)
        if whole:
            self.machine.stop(KickExit())

    def _run(self, script: bytes, shown: str, timeout: float) -> Result:
        __tracebackhide__ = True
        self._must_live()
        self._finish()
        call = agent.Call(script)
        if len(call.script) > agent.DATA:
            raise ValueError(f"a script of {len(script)} bytes: give it as a file, with put")
        self._call = call
        self.machine.memory.write(WINDOW, call.script)
        self._send(call.request)
        try:
            whole = self._until(lambda: call.status is not None, timeout)
        except KeyboardInterrupt:
            self.abandon()
            raise
        if whole:
            assert call.status is not None
            return Result(call.status, bytes(call.output))
        ended = self._interrupt(call)
        how = "Ctrl-C ended it" if ended else "Ctrl-C did not end it either, so the guest is given up"
        if not ended:
            self.give_up(f"{shown!r} hung")
        output = bytes(call.output[-2000:]).decode(errors="replace")
        raise GuestTimeoutError(f"{shown!r} did not end in {timeout:g} s; {how}. Its output so far:\n{output}".rstrip())

    def _finish(self) -> None:
        """Have the command ended that a device's exception, or the user, came in between."""
        __tracebackhide__ = True
        call = self._call
        if call is None or call.status is not None:
            return
        grace = 0.0 if call.abandoned else _GRACE
        if not self._until(lambda: call.status is not None, grace) and not self._interrupt(call):
            self.give_up("the command before hung")
            self._must_live()

    def _interrupt(self, call: agent.Call) -> bool:
        """Press Ctrl-C, then Ctrl-\\; return whether the command has ended."""
        __tracebackhide__ = True
        for key in (agent.INTERRUPT, agent.QUIT):
            self._send(key)
            if self._until(lambda: call.status is not None, _GRACE):
                return True
        return False

    def _send(self, data: bytes) -> None:
        with self.machine.lock:
            self._com2.receive(data)

    def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Run the machine until `condition`, which is true only after a `machine.stop`, or `seconds` have passed."""
        __tracebackhide__ = True
        end = time.monotonic() + seconds
        while not condition():
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._machine_run(left)
        return True

    def _machine_run(self, seconds: float) -> None:
        __tracebackhide__ = True
        try:
            exit = self.machine.run(timeout=seconds)
        except BaseException as exc:
            if self.machine.hung:
                self.give_up(str(exc) if isinstance(exc, DeviceHungError) else "a device never came back")
            raise
        if isinstance(exit, KickExit | TimeoutExit):
            return
        what = describe(exit, self.machine.vcpus[0])[1]
        if isinstance(exit, PowerOffExit):
            what = "it powered off"
        elif isinstance(exit, ResetExit):
            what = "its kernel panicked" if "Kernel panic" in self.log else "it reset the machine"
        self.give_up(what)
        if "panicked" in what:
            self._forgiven = len(self._console)
            raise PanicError(f"the guest is no more: {what}:\n" + "\n\n".join(complaints(self.log)))
        raise GuestError(f"the guest is no more: {what}")

    def _must_live(self) -> None:
        __tracebackhide__ = True
        if self.dead:
            raise GuestError(f"the guest is no more: {self.dead}")

    def _text(self, start: int) -> str:
        return self._console[start:].decode(errors="replace").replace("\r\n", "\n")

    def _last(self) -> str:
        return self._text(max(0, len(self._console) - 3000)).strip()


def guest_initrd() -> bytes:
    """Return the guest's file system: BusyBox and the agent. Raises `GuestUnavailableError`."""
    return busybox_initrd(debian.busybox().read_bytes(), agent.INIT, {"agent": agent.agent(WINDOW)})
