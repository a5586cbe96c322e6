"""Events that interrupt: a ring is an edge at a line of the PC, on every engine and wherever its controllers are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import rig
from bus_devices import Recorder
from kvm_rig import why_not
from rig import CODE, code64

from iobus.clock import SteppedClock
from iobus.engines.kvm import probe
from iobus.engines.kvm.engine import KvmEngine
from iobus.engines.names import IRQCHIPS
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import PowerOffExit
from iobus.machine import Engine, Machine
from iobus.pc.pc import Pc
from iobus.watcher import WatchError

IRQ = 5
VECTOR = 0x50
PIC_VECTOR = 0x25
HANDLER = CODE + 0x1000

# The 8259 masked, the I/O APIC's entry 5 set.
IOAPIC = """
    b0 ff e6 21           ; mov al, 0xff; out 0x21, al
    bb 00 00 c0 fe        ; mov ebx, 0xfec00000
    c7 03 1b 00 00 00     ; mov dword ptr [rbx], 0x1b
    c7 43 10 00 00 00 00  ; mov dword ptr [rbx + 0x10], 0
    c7 03 1a 00 00 00     ; mov dword ptr [rbx], 0x1a
    c7 43 10 {}           ; mov dword ptr [rbx + 0x10], ...
"""
EDGE, MASKED = "50 00 00 00", "50 00 01 00"
PIC = """
    b0 11 e6 20  ; mov al, 0x11; out 0x20, al
    b0 20 e6 21  ; mov al, 0x20; out 0x21, al
    b0 04 e6 21  ; mov al, 4; out 0x21, al
    b0 01 e6 21  ; mov al, 1; out 0x21, al
    b0 df e6 21  ; mov al, 0xdf; out 0x21, al
"""
READY = """
    c6 47 08 01  ; mov byte ptr [rdi + 8], 1
    fb           ; sti
    f4           ; again: hlt
    eb fd        ; jmp again
"""
COUNT = code64("""
    ff 07              ; inc dword ptr [rdi]
    b8 b0 00 e0 fe     ; mov eax, 0xfee000b0
    c7 00 00 00 00 00  ; mov dword ptr [rax], 0
    48 cf              ; iretq
""")
COUNT_PIC = code64("""
    ff 07        ; inc dword ptr [rdi]
    b0 20 e6 20  ; mov al, 0x20; out 0x20, al
    48 cf        ; iretq
""")


class PcGuest(rig.Guest):
    """A guest on a PC, with its interrupt controllers."""

    def __init__(self, engine: Engine, program: bytes) -> None:
        self.pc = Pc(engine, memory=2 << 20)
        self.machine, self.memory = self.pc.machine, self.pc.machine.memory
        self.vcpu = self.machine.vcpus[0]
        self.start()
        self.memory.write(CODE, program)
        self.gate(VECTOR, COUNT, HANDLER)
        self.gate(PIC_VECTOR, COUNT_PIC, HANDLER + 0x100)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run in another thread, from where the guest is ready to the end of the block."""
        ends: list[object] = []
        thread = threading.Thread(target=lambda: ends.append(self.machine.run(timeout=120)))
        thread.start()
        try:
            self.until(lambda: self.word(8, 1))
            yield
        finally:
            self.machine.stop(PowerOffExit())
            thread.join()
        assert ends == [PowerOffExit()]

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "it has not come"
            time.sleep(0.0002)


@pytest.fixture(params=["unicorn", *IRQCHIPS])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Unicorn, and KVM with its controllers in each place."""
    if request.param == "unicorn":
        return UnicornEngine()
    if why_not():
        pytest.skip(why_not())
    return KvmEngine(request.param)


def test_each_ring_interrupts_the_guest(engine: Engine) -> None:
    """Rings one by one from another thread are each an interrupt, through the I/O APIC."""
    with PcGuest(engine, code64(IOAPIC.format(EDGE) + READY)) as guest:
        event = guest.pc.irq_event(IRQ, "test")
        with guest.running():
            for count in range(1, 51):
                event.ring()
                guest.until(lambda count=count: guest.word(size=4) == count)  # type: ignore[misc]


def test_the_kernel_delivers_where_it_has_the_controllers(engine: Engine) -> None:
    """With the machine's lock held nothing in Python can: the ring alone interrupts the guest."""
    if engine.irqchip is None:
        pytest.skip("the controllers are in Python here")
    with PcGuest(engine, code64(IOAPIC.format(EDGE) + READY)) as guest:
        event = guest.pc.irq_event(IRQ)
        with guest.running(), guest.machine.lock:
            event.ring()
            guest.until(lambda: guest.word(size=4) == 1)


def test_masked_in_the_io_apic_the_8259_has_it(engine: Engine) -> None:
    """As the line of a device: the event reaches 8259 and I/O APIC alike, whichever the guest listens to."""
    with PcGuest(engine, code64(IOAPIC.format(EDGE) + IOAPIC.format(MASKED) + PIC + READY)) as guest:
        event = guest.pc.irq_event(IRQ)
        with guest.running():
            for count in (1, 2, 3):
                event.ring()
                guest.until(lambda count=count: guest.word(size=4) == count)  # type: ignore[misc]


def test_a_level_triggered_line_is_served_again_after_its_eoi(engine: Engine) -> None:
    """A device's line that stays up interrupts again after each EOI, until it goes down (82093AA, section 3.2.4)."""
    if engine.irqchip is not None and not engine.irqchip.whole and (lacks := probe.not_hardware()):
        pytest.skip(f"the kernel tells of no EOI here: {lacks}")
    with PcGuest(engine, code64(IOAPIC.format("50 80 00 00") + READY)) as guest:
        line = guest.pc.irq(IRQ, "level")
        with guest.running():
            with guest.machine.lock:
                line.set(True)
            guest.until(lambda: guest.word(size=4) >= 3)
            with guest.machine.lock:
                line.set(False)
            for _ in range(3):
                before = guest.word(size=4)
                with guest.machine.lock:
                    line.set(True)
                guest.until(lambda before=before: guest.word(size=4) > before)  # type: ignore[misc]
                with guest.machine.lock:
                    line.set(False)


def test_a_reset_machine_can_be_interrupted_again(engine: Engine) -> None:
    """The event outlives a reset, after which the guest sets its entry anew."""
    program = code64(IOAPIC.format(EDGE) + READY)
    with PcGuest(engine, program) as guest:
        event = guest.pc.irq_event(IRQ)
        for count in (1, 2):
            with guest.running():
                event.ring()
                guest.until(lambda count=count: guest.word(size=4) == count)  # type: ignore[misc]
            guest.pc.reset()
            guest.memory.store(rig.DATA + 8, 1, 0)
            guest.start()


# Watching, without a guest.


def test_a_watched_event_calls_with_the_lock_held() -> None:
    """What belongs to a doorbell is done by the machine's thread, after the ring, one thing at a time."""
    with Machine(clock=SteppedClock()) as machine:
        bell = machine.mmio.attach(Recorder(), 0x1000, 8).doorbell(0, 4)
        done, calls = threading.Event(), []

        def work() -> None:
            calls.append(threading.current_thread().name)
            done.set()

        machine.watch(bell, work)
        with pytest.raises(ValueError, match="Doorbell 4-byte write at offset 0x0> is watched already"):
            machine.watch(bell, work)
        with machine.lock:
            machine.mmio.write(0x1000, 4, 1)
            assert not done.wait(0.02), "the lock is held here"
        assert done.wait(60) and calls == ["iobus-events"]
        machine.unwatch(bell)
        machine.mmio.write(0x1000, 4, 1)
        assert bell.wait(0.02) == 1, "the ring is left to take"


def test_what_a_watched_event_raises_run_raises(engine: Engine) -> None:
    """As for a timer: the machine is whole, and the next ring calls again."""
    with PcGuest(engine, code64(READY)) as guest:
        event = guest.pc.irq_event(IRQ)
        other = guest.machine.mmio.attach(Recorder(), 0xD0000000, 8).doorbell(0, 4)

        def fail() -> None:
            raise ZeroDivisionError("at the ring")

        guest.machine.watch(other, fail)
        for _ in range(2):
            other.ring()
            with pytest.raises(WatchError, match=r"watch.*Doorbell.*fail.*ZeroDivisionError: at the ring") as caught:
                guest.machine.run(timeout=60)
            assert isinstance(caught.value.__cause__, ZeroDivisionError)
        event.ring()
