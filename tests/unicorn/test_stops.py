"""What ends a run of a guest on the Unicorn engine besides an access, and that the machine goes on from it.

Devices that raise, HLT, triple faults, kicks, timeouts, Ctrl-C, and the machine's end.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rig import CODE, DATA, MMIO, Guest, RealModeGuest, Vectors, code16, code64

from iobus.bus import Device, DeviceError
from iobus.clock import RealClock, TimerError
from iobus.exits import (
    EngineError,
    HltExit,
    KickExit,
    PioExit,
    PowerOffExit,
    ShutdownExit,
    TimeoutExit,
)

pytestmark = pytest.mark.usefixtures("way")

SPIN = code64("""
    48 ff c1  ; inc rcx
    eb fb     ; jmp .-3
""")
SPIN_IF = code64("""
    fb        ; sti
    48 ff c1  ; inc rcx
    eb fb     ; jmp .-3
""")


class Faulty(Device):
    """Raises at every access, having noted it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int | None]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append((offset, size, None))
        raise ZeroDivisionError("on purpose")

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append((offset, size, value))
        raise ZeroDivisionError("on purpose")


class Calls(Device):
    """Calls a function at every access, and declines it."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function

    def read(self, offset: int, size: int) -> int:
        self.function()
        return NotImplemented  # type: ignore[no-any-return]

    def write(self, offset: int, size: int, value: int) -> object:
        self.function()
        return NotImplemented


# Errors of devices.


def test_a_device_error_raises_out_of_run_and_run_goes_on() -> None:
    """It names the access and has the cause; a read is completed with ones, no access happens twice."""
    program = code64("""
        e4 10     ; in al, 0x10
        eb 00     ; jmp .+2
        8b 4b 04  ; mov ecx, [rbx + 4]
        eb 00     ; jmp .+2
        89 4b 08  ; mov [rbx + 8], ecx
        eb 00     ; jmp .+2
        f4        ; hlt
    """)
    with Guest(program) as guest:
        device = Faulty()
        guest.machine.mmio.attach(device, MMIO, 16)
        guest.machine.pio.attach(device, 0x10, 1)
        found = []
        for _ in range(3):
            with pytest.raises(DeviceError, match="on purpose") as caught:
                guest.machine.run(timeout=20)
            assert isinstance(caught.value.__cause__, ZeroDivisionError)
            found.append((caught.value.address, caught.value.is_write))
            assert guest.vcpu.load(DATA, 4) == 0
        r = guest.finish()
        assert found == [(0x10, False), (MMIO + 4, False), (MMIO + 8, True)]
        assert device.seen == [(0, 1, None), (4, 4, None), (8, 4, 0xFFFFFFFF)]
        assert (r.rax & 0xFF, r.rcx) == (0xFF, 0xFFFFFFFF)


def test_of_several_device_errors_before_the_guest_stops_each_is_raised() -> None:
    """A block of code runs to its end, so there can be more than one: each run raises one, in their order."""
    program = code64("""
        e4 10  ; in al, 0x10
        e4 11  ; in al, 0x11
        f4     ; hlt
    """)
    with Guest(program) as guest:
        device = Faulty()
        guest.machine.pio.attach(device, 0x10, 2)
        for port in (0x10, 0x11):
            with pytest.raises(DeviceError, match="on purpose") as caught:
                guest.machine.run(timeout=20)
            assert caught.value.address == port
        guest.finish()
        assert len(device.seen) == 2


def test_an_error_in_a_timer_raises_out_of_run() -> None:
    """`TimerError` has the cause; the guest, which was spinning, can be run on."""
    with Guest(SPIN) as guest:
        clock = guest.machine.clock
        assert isinstance(clock, RealClock)
        with guest.machine.lock:
            clock.timer(lambda: 1 // 0, "broken").arm(0)
        with pytest.raises(TimerError, match="broken") as caught:
            guest.machine.run(timeout=20)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert guest.machine.run(timeout=0.01) == TimeoutExit(0.01)


# HLT.


def test_hlt_with_interrupts_off_is_an_exit_until_an_nmi() -> None:
    """Nothing maskable wakes it: it exits again when run again, and an NMI takes it behind the HLT."""
    program = code64("""
        f4     ; hlt
        ff c0  ; inc eax
        f4     ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(
            2,
            code64("""
                ff c1  ; inc ecx
                48 cf  ; iretq
        """),
            CODE + 0x1000,
        )
        controller = Vectors(guest.machine, 0x40)
        for _ in range(3):
            assert guest.vcpu.run() == HltExit()
        guest.vcpu.nmi()
        r = guest.finish()
        assert (r.rax, r.rcx) == (1, 1)
        assert controller.waiting


@pytest.mark.parametrize("wake", ["interrupt", "nmi", "kick"])
def test_a_halted_guest_is_woken_from_another_thread(wake: str) -> None:
    """HLT with interrupts on sleeps in `run`; an interrupt or an NMI runs its handler, a kick returns."""
    program = code64("""
        fb  ; sti
        f4  ; hlt
        fa  ; cli
        f4  ; hlt
    """)
    with Guest(program) as guest:
        handler = code64("""
            48 ff 04 25 00 00 03 00  ; inc qword ptr [0x30000]
            48 cf                    ; iretq
        """)
        guest.gate(2, handler, CODE + 0x1000)
        guest.gate(0x40, handler, CODE + 0x1000)
        controller = Vectors(guest.machine)
        act = {"interrupt": lambda: controller.request(0x40), "nmi": guest.vcpu.nmi, "kick": guest.vcpu.kick}[wake]
        thread = threading.Timer(0.02, act)
        thread.start()
        exit = guest.vcpu.run()
        thread.join()
        if wake == "kick":
            assert exit == KickExit()
            controller.request(0x40)
            exit = guest.vcpu.run()
        assert exit == HltExit()
        assert guest.word() == 1


# Triple faults.


def test_a_triple_fault_in_long_mode_is_a_shutdown() -> None:
    """#UD with an empty IDT: #GP, #DF, and the end; it stays the end when run again."""
    with Guest(b"\x90\x0f\x0b") as guest:
        guest.set(idt_limit=0)
        assert guest.machine.run(timeout=20) == ShutdownExit(CODE + 1)
        assert guest.machine.run(timeout=20) == ShutdownExit(CODE + 1)


def test_a_triple_fault_in_real_mode_is_a_shutdown() -> None:
    """INT with an interrupt table of no length, the customary way to reset a PC."""
    program = code16("""
        cd 21  ; int 0x21
        f4     ; hlt
    """)
    with RealModeGuest(program) as guest:
        guest.set(idt_limit=0)
        assert guest.machine.run(timeout=20) == ShutdownExit(0x7C00)
        guest.machine.reset()
        assert guest.vcpu.registers.rip == 0xFFF0


# Kicks, timeouts, Ctrl-C.


@pytest.mark.parametrize("program", [SPIN, SPIN_IF], ids=["IF=0", "IF=1"])
def test_no_kick_of_a_spinning_guest_is_lost(program: bytes) -> None:
    """500 kicks from another thread, at any moment of a run: each ends one, and the guest has gone on."""
    with Guest(program) as guest:
        returned = threading.Semaphore(0)

        def kicks() -> None:
            for number in range(500):
                if number % 3:
                    time.sleep(0.0001 * (number % 3))
                guest.vcpu.kick()
                returned.acquire()

        thread = threading.Thread(target=kicks)
        thread.start()
        for _ in range(500):
            assert guest.vcpu.run() == KickExit()
            returned.release()
        thread.join()
        assert guest.vcpu.registers.rcx > 500


def test_a_kick_before_a_run_is_kept() -> None:
    """It ends the next run at once, and only that."""
    with Guest(b"\xf4") as guest:
        guest.vcpu.kick()
        guest.vcpu.kick()
        assert guest.vcpu.run() == KickExit()
        assert guest.vcpu.run() == HltExit()


def test_a_timeout_ends_a_spinning_guest_and_it_goes_on() -> None:
    """`TimeoutExit` tells the seconds; the guest's registers are there to see, and it runs on from them."""
    with Guest(SPIN_IF) as guest:
        for _ in range(3):
            before = guest.vcpu.registers.rcx
            while guest.vcpu.registers.rcx == before:  # on a busy host a time may pass before the guest starts
                assert guest.machine.run(timeout=0.01) == TimeoutExit(0.01)


def test_a_device_stops_the_machine_with_its_reason() -> None:
    """`Machine.stop` in a callback ends the run after that access."""
    program = code64("""
        e6 10  ; out 0x10, al
        eb fe  ; jmp .
    """)
    with Guest(program) as guest:
        guest.machine.pio.attach(Calls(lambda: guest.machine.stop(PowerOffExit())), 0x10, 1)
        assert guest.machine.run(timeout=20) == PowerOffExit()
        assert guest.machine.run(timeout=0.01) == TimeoutExit(0.01)


def test_ctrl_c_stops_the_guest_and_it_runs_on() -> None:
    """KeyboardInterrupt comes out of `run` in the main thread, with the guest at rest."""
    with Guest(SPIN) as guest:
        thread = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            guest.machine.run(timeout=20)
        thread.join()
        first = guest.vcpu.registers.rcx
        assert guest.vcpu.registers.rcx == first
        for _ in range(100):  # a run may end before a busy host has let the guest do anything
            assert guest.machine.run(timeout=0.05) == TimeoutExit(0.05)
            if guest.vcpu.registers.rcx > first:
                break
        assert guest.vcpu.registers.rcx > first


@pytest.mark.parametrize("outcome", ["exit", "error"])
def test_what_the_guest_did_when_ctrl_c_came_is_not_lost(outcome: str) -> None:
    """An exit or an error that nobody could take, for KeyboardInterrupt was on its way, comes from the next run."""
    program = code64("""
        e4 10  ; in al, 0x10
        f4     ; hlt
    """)
    with Guest(program) as guest:

        def interrupted() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            while not guest.vcpu.executor._kicked:  # type: ignore[attr-defined]
                time.sleep(0.001)
            if outcome == "error":
                raise ZeroDivisionError("on purpose")

        guest.machine.pio.attach(Calls(interrupted), 0x10, 1)
        with pytest.raises(KeyboardInterrupt):
            guest.vcpu.run()
        if outcome == "error":
            with pytest.raises(DeviceError, match="on purpose"):
                guest.vcpu.run()
        else:
            exit = guest.vcpu.run()
            assert exit == PioExit(0x10, 1, False)
            exit.data = 0x42
        while isinstance(exit := guest.vcpu.run(), KickExit):
            pass
        assert exit == HltExit()
        assert guest.vcpu.registers.rax == (0xFF if outcome == "error" else 0x42)


def test_ctrl_c_as_the_guest_comes_back_loses_nothing_and_does_not_hang() -> None:
    """The signal's exception may come right behind the wait, with the hand-over done: the exit is the next run's."""

    class Interrupted:
        """The lock that is waited on, and a signal when it is taken for the first time."""

        def __init__(self, lock: Any) -> None:
            self.lock, self.come, self.release = lock, False, lock.release

        def acquire(self, **options: Any) -> bool:
            taken: bool = self.lock.acquire(**options)
            if taken and not self.come:
                self.come = True
                raise KeyboardInterrupt
            return taken

    program = code64("""
        e4 10  ; in al, 0x10
        f4     ; hlt
    """)
    with Guest(program) as guest:
        executor: Any = guest.vcpu.executor
        executor._done = Interrupted(executor._done)
        with pytest.raises(KeyboardInterrupt):
            guest.vcpu.run()
        exit = guest.vcpu.run()
        assert exit == PioExit(0x10, 1, False)
        exit.data = 0x42
        assert guest.vcpu.run() == KickExit()
        assert guest.finish().rax == 0x42


# The end, with an access under way.

TWICE = code64("""
    e4 10  ; in al, 0x10
    e6 11  ; out 0x11, al
    eb fe  ; jmp .
""")


def threads() -> list[str]:
    """The machines' own threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("iobus-")]


def test_closing_a_machine_with_an_exit_unanswered() -> None:
    """Its thread ends, also if the guest has more to ask before it can be stopped; it does not run again."""
    before = threads()
    with Guest(TWICE) as guest:
        assert isinstance(guest.vcpu.run(), PioExit)
    assert threads() == before
    with pytest.raises(EngineError, match="closed"):
        guest.vcpu.run()


def test_resetting_a_machine_with_an_exit_unanswered() -> None:
    """The access ends somehow, the CPU is at its reset vector, and runs from where it is put."""
    with Guest(TWICE) as guest:
        assert isinstance(guest.vcpu.run(), PioExit)
        guest.machine.reset()
        r = guest.vcpu.registers
        assert (r.rip, r.cs.base, r.cr0 & 1, r.rflags) == (0xFFF0, 0xFFFF0000, 0, 2)
        guest.memory.write(CODE, b"\xb0\x07\xf4")
        guest.start()
        assert guest.finish().rax == 7


def test_machines_come_and_go_without_leaving_anything() -> None:
    """Twenty machines, run and closed: no thread of theirs is left, and no file is open."""
    before = threads(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with Guest(b"\xf4") as guest:
            guest.finish()
    assert (threads(), len(list(Path("/proc/self/fd").iterdir()))) == before
