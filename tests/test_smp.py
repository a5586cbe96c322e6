"""Several vCPUs run together: what `Machine.run` makes of their exits, with executors that follow a script."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from iobus.clock import SteppedClock
from iobus.exits import Exit, HltExit, KickExit, MmioExit, PowerOffExit, ShutdownExit, TimeoutExit
from iobus.machine import Machine
from iobus.vcpu import VCPU, Answer, NoExecutor

Script = Callable[["Scripted"], Exit]


class Scripted(NoExecutor):
    """An executor whose `run` is the script it was given; kicks and messages of other vCPUs wake its `wait`."""

    def __init__(self, vcpu: VCPU, script: Script) -> None:
        super().__init__()
        self.vcpu = vcpu
        self.script = script
        self.runs = 0
        self.started: list[int] = []
        self.kicked = threading.Event()

    def run(self, answer: Answer | None) -> Exit:
        self.runs += 1
        return self.script(self)

    def spin(self) -> Exit:
        """A guest that never ends by itself."""
        self.kicked.wait()
        self.kicked.clear()
        return KickExit()

    def kick(self) -> None:
        self.kicked.set()

    def startup(self, vector: int) -> None:
        self.started.append(vector)


def machine_of(*scripts: Script) -> tuple[Machine, list[Scripted]]:
    machine = Machine(cpus=len(scripts), clock=SteppedClock())
    executors = [Scripted(vcpu, script) for vcpu, script in zip(machine.vcpus, scripts, strict=True)]
    for vcpu, executor in zip(machine.vcpus, executors, strict=True):
        vcpu.executor = executor
    return machine, executors


def test_all_run_at_the_same_time() -> None:
    """No vCPU waits for another one's run to end: each comes to a barrier that needs all of them."""
    barrier = threading.Barrier(4, timeout=60)

    def meet(executor: Scripted) -> Exit:
        barrier.wait()
        return PowerOffExit() if executor.vcpu.index == 2 else executor.spin()

    machine, _ = machine_of(*[meet] * 4)
    assert machine.run() == PowerOffExit()
    assert machine.exited is machine.vcpus[2]


def test_nothing_runs_once_run_has_returned() -> None:
    """The exit of one vCPU pauses the others before the caller gets it."""
    machine, executors = machine_of(lambda _: ShutdownExit(1), Scripted.spin, Scripted.spin)
    before = threading.active_count()
    for _ in range(20):
        assert machine.run() == ShutdownExit(1)
        assert threading.active_count() == before
    assert executors[0].runs == 20


def test_two_exits_at_once_are_returned_one_after_the_other() -> None:
    """An exit that came while another one was being returned is not lost, and its vCPU not run past it."""
    barrier = threading.Barrier(2, timeout=60)

    def access(executor: Scripted) -> Exit:
        barrier.wait()
        return MmioExit(0x1000 * executor.vcpu.index, 4, False)

    machine, executors = machine_of(access, access)
    exits = [machine.run(unclaimed="stop"), machine.run(unclaimed="stop")]
    assert {exit.address for exit in exits if isinstance(exit, MmioExit)} == {0, 0x1000}
    assert [executor.runs for executor in executors] == [1, 1]


def test_a_halted_vcpu_waits_for_another_one() -> None:
    """A vCPU that waits for start-up is not run again until it is started, and then is."""
    halted = threading.Event()

    def secondary(executor: Scripted) -> Exit:
        if executor.started:
            return PowerOffExit()
        halted.set()
        return HltExit()

    def boot(executor: Scripted) -> Exit:
        assert halted.wait(60)
        executor.vcpu.machine.vcpus[1].startup(0x9F)
        return executor.spin()

    machine, executors = machine_of(boot, secondary)
    assert machine.run() == PowerOffExit()
    assert executors[1].started == [0x9F]
    assert executors[1].runs == 2


def test_all_halted_ends_the_run() -> None:
    """When every vCPU waits for another one, nobody ever comes: the run ends with `HltExit`."""
    machine, executors = machine_of(*[lambda _: HltExit()] * 3)
    assert machine.run() == HltExit()
    assert machine.run() == HltExit()
    assert [executor.runs for executor in executors] == [2, 2, 2]


def test_a_wake_up_on_the_way_is_no_halt_of_all() -> None:
    """Two vCPUs that wake each other and halt, 2,000 times, are never taken for halted both before the last time."""
    rounds = 2_000

    def ping(executor: Scripted) -> Exit:
        if executor.runs <= rounds:
            executor.vcpu.machine.vcpus[1 - executor.vcpu.index].nmi()
        return HltExit()

    machine, executors = machine_of(ping, ping)
    assert machine.run() == HltExit()
    assert max(executor.runs for executor in executors) > rounds


def test_an_exception_of_one_vcpu_is_raised_once_and_the_machine_runs_on() -> None:
    """What one vCPU's `run` raises comes out of `Machine.run`, once."""

    def fails(executor: Scripted) -> Exit:
        if executor.runs == 1:
            raise ZeroDivisionError("the device's")
        return PowerOffExit()

    machine, _ = machine_of(Scripted.spin, fails)
    with pytest.raises(ZeroDivisionError):
        machine.run()
    assert machine.run() == PowerOffExit()


def test_an_error_of_a_timer_is_raised_once() -> None:
    """`Machine.fail` makes one run raise, though every vCPU is kicked."""
    machine, _ = machine_of(*[Scripted.spin] * 3)
    machine.fail(ValueError("a timer's"))
    with pytest.raises(ValueError, match="a timer's"):
        machine.run()
    assert machine.run(timeout=0.01) == TimeoutExit(0.01)


def test_stop_from_another_thread_ends_the_run_with_its_reason() -> None:
    """`stop` while every vCPU spins ends the run; a kick that nobody asked the run to end for does not."""
    spinning = threading.Semaphore(0)

    def spin(executor: Scripted) -> Exit:
        spinning.release()
        return executor.spin()

    machine, _ = machine_of(*[spin] * 4)

    def stop() -> None:
        for _ in machine.vcpus:
            spinning.acquire()
        machine.kick()  # to have them look, not to end
        for _ in machine.vcpus:
            spinning.acquire()
        machine.stop(PowerOffExit())

    thread = threading.Thread(target=stop)
    thread.start()
    assert machine.run(timeout=60) == PowerOffExit()
    thread.join()


def test_a_timeout_ends_halted_vcpus_too() -> None:
    """A time limit ends the run also when some vCPUs are halted and the rest spin."""
    machine, _ = machine_of(Scripted.spin, lambda _: HltExit())
    assert machine.run(timeout=0.01) == TimeoutExit(0.01)


def test_reset_forgets_exits_not_yet_returned() -> None:
    """After a reset the exits of before it are nobody's."""
    barrier = threading.Barrier(2, timeout=60)

    def access(executor: Scripted) -> Exit:
        if executor.runs == 1:
            barrier.wait()
            return MmioExit(0x1000, 4, False)
        return PowerOffExit()

    machine, _ = machine_of(access, access)
    assert isinstance(machine.run(unclaimed="stop"), MmioExit)
    machine.reset()
    assert machine.run(unclaimed="stop") == PowerOffExit()
