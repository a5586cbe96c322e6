"""A machine: RAM, two buses, vCPUs and a clock. No PC knowledge, no device, no particular engine.

Stands above `vcpu.py`; `engines/` and `pc/` build on it. It keeps the one lock that guards device
callbacks, runs the clock's timers, and answers the accesses that nobody claims.

Locks, in the order they are taken: `Machine.lock`, then a `Bus`'s internal one (a leaf).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from iobus.bus import Bus, Device, Region, must_be_instance
from iobus.clock import Clock, RealClock
from iobus.dma import Dma, Masters
from iobus.dma import ReentrancyError as ReentrancyError
from iobus.doorbell import Event
from iobus.errors import RAISED, CallbackError
from iobus.exits import EngineError, Exit, KickExit, MmioExit, PioExit, TimeoutExit
from iobus.hung import comes_back
from iobus.irq import Irqchip
from iobus.lock import Lock
from iobus.memory import Memory
from iobus.smp import Gang
from iobus.vcpu import VCPU, Executor
from iobus.watcher import Watcher

Unclaimed = Literal["ones", "stop"]

_COUNTED_ADDRESSES = 1 << 16  # a guest can touch any address: bound what counting them costs


class Engine(Protocol):
    """Who executes guest code. See `iobus.engines`."""

    name: str
    irqchip: Irqchip | None
    """The interrupt controllers that it has itself; None where they are devices."""

    def attach(self, machine: Machine) -> None:
        """Take `machine`'s RAM; called once, before `executor`."""

    def executor(self, vcpu: VCPU) -> Executor:
        """Return what runs `vcpu`."""

    def flush(self) -> None:
        """Have each write that the guest has made reach its device. From any thread but a device's callback."""

    def reset(self) -> None:
        """Return what `Executor.init` leaves as it is to power-on; nothing is running."""

    def close(self) -> None:
        """Free what the engine holds; nothing runs afterwards."""


class UnclaimedAccess(NamedTuple):
    """An address that no device claimed, as the counter's key."""

    space: Literal["mmio", "pio"]
    address: int
    is_write: bool


class Machine:
    """RAM, buses, vCPUs and a clock, on an engine or (with `engine=None`) without a CPU.

    `lock` guards every device callback, timer and interrupt line: whoever touches a device from
    outside, such as a thread that feeds it input, holds it.
    """

    def __init__(self, engine: Engine | None = None, *, cpus: int = 1, clock: Clock | None = None) -> None:
        if cpus < 1:
            raise ValueError(f"a machine has at least 1 vCPU, not {cpus}")
        self.lock = Lock()
        self.memory = Memory()
        self.mmio = Bus(name="mmio")
        self.pio = Bus(0x10000, name="pio")
        self.clock = RealClock() if clock is None else clock
        self.engine = engine
        self.unclaimed: Counter[UnclaimedAccess] = Counter()
        """How often which address was accessed and answered with the defined result."""
        self.hung = False
        """Whether a device never came back when a run was to end: the machine is to be left as it is."""
        self._stop_reason: Exit | None = None
        self._expired = False
        self._error: Exception | None = None  # guarded by lock
        self._masters = Masters()
        self._watcher = Watcher(self.lock, self.fail)
        self._ticker = _Ticker(self) if isinstance(self.clock, RealClock) else None
        self.vcpus = tuple(VCPU(self, index) for index in range(cpus))
        self.exited = self.vcpus[0]
        """The vCPU that the exit came from which `run` returned last."""
        self._gang = Gang(self.vcpus, self._wanted) if cpus > 1 else None
        if engine is not None:
            engine.attach(self)
            for vcpu in self.vcpus:
                vcpu.executor = engine.executor(vcpu)

    def __repr__(self) -> str:
        return f"<Machine on {self.engine.name if self.engine else 'no engine'}>"

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the machine's threads and free the engine. The machine does not run again.

        Does nothing for one that is `hung`, whose threads would not end, or turns out to be: a timer's callback has
        `hung.GRACE` seconds to come back.
        """
        if self.hung:
            return
        if self._ticker is not None and not self._ticker.close():
            return
        self._watcher.close()
        if self.engine is not None:
            self.engine.close()

    def run(self, *, timeout: float | None = None, unclaimed: Unclaimed = "ones") -> Exit:
        """Run all vCPUs until the machine stops by itself, and say why.

        Accesses that no device claims read as all ones, or are dropped, and are counted in
        `unclaimed`; with `unclaimed="stop"` the first of them is returned instead, to be answered as
        `VCPU.run` says. `timeout` in seconds of host time ends the run with `TimeoutExit`. Raises
        `DeviceError` when a device does: the machine stays whole and can be run on. Raises `EngineError` for a
        machine that is `hung`. Ctrl-C in the main thread waits for a clean stop; when a device has not come back
        after `hung.GRACE` seconds, or at the next Ctrl-C, the machine is given up, and `hung`.
        """
        if self.hung:
            raise EngineError("the machine was given up: a device never came back")
        answer = complete_with_ones if unclaimed == "ones" else None
        self._expired = False
        alarm = threading.Timer(timeout or 0, self._expire)
        alarm.daemon = True
        if timeout is not None:
            alarm.start()
        try:
            while True:
                # A run that an exception of a signal's handler ended has taken the kick, and left what it was for.
                self.raise_error()
                if (stopped := self._stop_reason) is not None:
                    self._stop_reason = None
                    return stopped
                if self._gang is None:
                    exit = self.vcpus[0].run(answer)
                else:
                    self.exited, exit = self._gang.run(answer)
                if not isinstance(exit, KickExit):
                    return exit
                if self._stop_reason is None and timeout is not None and self._expired:
                    return TimeoutExit(timeout)
        finally:
            if timeout is not None:
                alarm.cancel()
                alarm.join()  # what it does is this run's, not the next one's

    def kick(self) -> None:
        """Make every vCPU look at what is wanted of it. From any thread."""
        for vcpu in self.vcpus:
            vcpu.kick()

    def stop(self, reason: Exit) -> None:
        """Make `run` return `reason`; the first reason counts. For devices (power-off) and other threads."""
        if self._stop_reason is None:
            self._stop_reason = reason
        self.kick()

    def fail(self, error: Exception) -> None:
        """Make `run` raise `error`, which happened outside an access (in a timer)."""
        with self.lock:
            self._error = error
        self.kick()

    def settle(self) -> None:
        """Have the rings acted on that came so far, and raise what `fail` was given: for who runs it no more."""
        if not self.hung:  # its lock is not to be had
            self._watcher.settle()
            self.raise_error()

    def started(self) -> None:
        """A vCPU begins to run: timers fire from now on."""
        if self._ticker is not None:
            self._ticker.start()

    def raise_error(self) -> None:
        """Raise what `fail` was given, once."""
        with self.lock:  # of several vCPUs one raises it
            error, self._error = self._error, None
        if error is not None:
            raise error

    def reset(self) -> None:
        """Return CPUs and devices, not RAM, to their power-on state.

        The machine must not be running, and the caller not hold `lock`: a CPU in the middle of an
        access that waits for its caller first goes on to where it can be stopped. Raises `CallbackError` when a
        device's `reset` does.
        """
        for vcpu in self.vcpus:
            vcpu.abandon()
            vcpu.executor.init()
        if self.engine is not None:
            self.engine.reset()
        if self._gang is not None:
            self._gang.reset()
        with self.lock:
            self._stop_reason = None
            for device in self.devices():
                reset = getattr(device, "reset", None)
                if reset is None:
                    continue
                try:
                    reset()
                except RAISED as exc:
                    raise CallbackError(f"reset() of {type(device).__name__}: {type(exc).__name__}: {exc}") from exc

    def _expire(self) -> None:
        self._expired = True
        self.kick()

    def _wanted(self) -> bool:
        """Whether a kick was meant for `run`, and not to have one vCPU look again."""
        return self._expired or self._stop_reason is not None

    @property
    def buses(self) -> tuple[Bus, ...]:
        """All buses: the machine's two, then each vCPU's two."""
        return self.mmio, self.pio, *(bus for vcpu in self.vcpus for bus in (vcpu.mmio, vcpu.pio))

    def devices(self) -> list[object]:
        """Return every attached device once, in the order of registration: machine's, vCPUs', then those behind them.

        Behind a device are those on its own `buses`.
        """
        found: dict[int, object] = {}
        buses = list(self.buses)
        for bus in buses:  # it grows meanwhile
            for region in bus.regions:
                if id(region.device) not in found:
                    found[id(region.device)] = region.device
                    buses += getattr(region.device, "buses", ())
        return list(found.values())

    def complete_unclaimed(self, exit: MmioExit | PioExit) -> int:
        """Give the defined result of an unclaimed access (a read: all ones) and count it."""
        space: Literal["mmio", "pio"] = "mmio" if isinstance(exit, MmioExit) else "pio"
        key = UnclaimedAccess(space, exit.address, exit.is_write)
        if key in self.unclaimed or len(self.unclaimed) < _COUNTED_ADDRESSES:
            self.unclaimed[key] += 1
        return (1 << 8 * exit.size) - 1

    def watch(self, event: Event, call: Callable[[], object]) -> None:
        """Call `call()`, with `lock` held, after each ring of `event`, and once for several that come together.

        A doorbell's device works so without a thread of its own, and the guest meanwhile runs on. Of what `call`
        raises, `run` raises a `WatchError`. Raises `ValueError` for an event that is watched already.
        """
        self._watcher.add(event, call)

    def unwatch(self, event: Event) -> None:
        """Call nothing for `event` any more, once this has returned. Before the event is closed."""
        self._watcher.remove(event)

    def dma(self, device: Device) -> Dma:
        """Return `device`'s access to guest physical addresses, for use inside and outside its callbacks."""
        return Dma(device, self.memory, self.mmio, self.lock, self._masters)


def attach_told(host: Any, bus: Bus, device: Any, base: int | None, length: int | None, options: Any) -> Region:
    """Attach a user's device to `bus`, as `Bus.attach` does, and tell it what it is attached to.

    Before, its method `connect(host)` is called, where it has one, with what gives it lines, memory and time;
    afterwards `placed(region)`, with the claim that it may move.
    """
    must_be_instance(device)
    connect = getattr(device, "connect", None)
    if connect is not None:
        connect(host)
    region = bus.attach(device, base, length, **options)
    placed = getattr(device, "placed", None)
    if placed is not None:
        placed(region)
    return region


def complete_with_ones(vcpu: VCPU, exit: MmioExit | PioExit) -> int:
    """The answer of a machine that no caller answers for."""
    return vcpu.machine.complete_unclaimed(exit)


class _Ticker:
    """Fires the real clock's timers, under the machine lock, on a thread of its own.

    Started by the first `run`, ended by `close`: guest time goes on between runs, as on real hardware.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._wakeup = threading.Lock()  # free when the ticker is to look: half the cost of a threading.Event
        self._wakeup.acquire()
        self._sleeps_until = 0  # ns of the clock; a hint, written by the ticker's thread only
        self._closed = False
        self._thread: threading.Thread | None = None
        machine.clock.on_earlier = self._earlier

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="iobus-timers", daemon=True)
            self._thread.start()

    def close(self) -> bool:
        """End the thread; return whether it has ended, and not its machine's device hangs."""
        self._closed = True
        self._wake()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True

        def has_ended(seconds: float) -> bool:
            thread.join(seconds)
            return not thread.is_alive()

        return comes_back(self._machine, has_ended)

    def _earlier(self, deadline: int) -> None:
        # A ticker that wakes before the new deadline anyway is left asleep: waking it costs the guest.
        if deadline < self._sleeps_until:
            self._wake()

    def _wake(self) -> None:
        try:
            self._wakeup.release()
        except RuntimeError:
            return  # it is awake, or about to be

    def _main(self) -> None:
        clock, lock, engine = self._machine.clock, self._machine.lock, self._machine.engine
        while not self._closed:
            self._sleeps_until = _FOREVER  # from here on an earlier deadline wakes it
            with lock:
                try:
                    if engine is not None:
                        engine.flush()
                    clock.run_due()
                except Exception as exc:
                    self._machine.fail(exc)
                deadline = clock.next_deadline()
            timeout = -1.0  # for ever
            if deadline is not None:
                timeout = min(max(0, deadline - clock.now()) / 1e9, threading.TIMEOUT_MAX)
                self._sleeps_until = deadline
            self._wakeup.acquire(timeout=timeout)


_FOREVER = 1 << 63
