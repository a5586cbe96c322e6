"""That KVM's kernel takes doorbells and coalesced writes, and what must hold although it does.

What a guest and a device see of it is in tests/engines, the same on every engine.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
from accesses import Accesses, Op
from bus_devices import Recorder
from kvm_rig import needs_kvm
from rig import CODE, DATA, MMIO, code64

from iobus.bus import Device, DeviceError
from iobus.engines.kvm import shortcuts
from iobus.exits import HltExit, KickExit

pytestmark = needs_kvm

STORES = code64("""
    89 0b  ; again: mov [rbx], ecx
    ff c9  ; dec ecx
    75 fa  ; jnz again
    f4     ; hlt
""")


@pytest.fixture
def guest() -> Any:
    with Accesses("kvm") as guest:
        yield guest


def taken(guest: Accesses) -> tuple[int, int]:
    """How many doorbells and zones the kernel has."""
    kept = guest.machine.engine.shortcuts
    return len(kept._bells), len(kept.zones)


def stores(guest: Accesses, count: int, at: int = MMIO) -> None:
    """Write ECX = count, count - 1, ... 1 to one address."""
    guest.memory.write(CODE, STORES)
    guest.set(rip=CODE, rbx=at, rcx=count)
    guest.finish()


def test_the_kernel_rings(guest: Accesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bus's own way of ringing broken, every ring still comes: memory and ports, any value and one."""
    region = guest.machine.mmio.attach(Recorder(), MMIO, 0x100)
    bells = [region.doorbell(0, 4), region.doorbell(8, 2, 7), region.doorbell(8, 2, 9)]
    bells.append(guest.machine.pio.attach(Recorder(), 0x1230, 8).doorbell(0, 1, 5))
    for bell in bells:
        monkeypatch.setattr(bell, "ring", lambda: pytest.fail("it came out"))
    ops = [Op(MMIO, 4, 1), Op(MMIO + 8, 2, 9), Op(MMIO, 4, 2), Op(MMIO + 8, 2, 7), Op(0x1230, 1, 5, True)]
    guest.make(ops)
    assert [bell.take() for bell in bells] == [2, 1, 1, 1]
    assert taken(guest) == (4, 0)


def test_what_comes_and_goes_is_registered_and_withdrawn(guest: Accesses) -> None:
    """The kernel has a doorbell exactly while the bus would ring it first, at once when a guest may be running."""
    region = guest.machine.mmio.attach(Recorder(), MMIO, 0x100)
    bell = region.doorbell(0, 4)
    assert taken(guest) == (0, 0), "not before the first run"
    guest.store(MMIO, 4, 1)
    assert taken(guest) == (1, 0)
    above = guest.machine.mmio.attach(Recorder(), MMIO + 3, 1, priority=1)
    assert taken(guest) == (0, 0)
    above.detach()
    own = guest.vcpu.mmio.attach(Recorder(), MMIO, 8)
    assert taken(guest) == (0, 0)
    own.enable(False)
    guest.store(MMIO, 4, 1)
    assert taken(guest) == (1, 0)
    region.coalesce = True
    assert taken(guest) == (0, 1), "a device that coalesces has its doorbells behind its writes"
    region.coalesce = False
    guest.store(MMIO, 4, 1)
    guest.vcpu.pio_path.observe(print)
    assert taken(guest) == (0, 0)
    guest.vcpu.pio_path.ignore(print)
    guest.store(MMIO, 4, 1)
    assert taken(guest) == (1, 0)
    assert bell.take() == 4
    bell.close()
    assert taken(guest) == (0, 0)


def test_the_ring_wraps_from_every_start_index(guest: Accesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that fill the ring and more, begun at each of its places: every write arrives, in order."""
    monkeypatch.setattr(shortcuts, "LATEST", 1000)  # nothing but exits empties it
    device = Recorder()
    guest.machine.mmio.attach(device, MMIO, 0x100).coalesce = True
    capacity = shortcuts.CAPACITY
    cpu: Any = guest.vcpu.executor
    u32, first = cpu.page.u32, cpu._ring_first
    count = capacity + 2  # all but one place, one by an exit, two more: the next batch begins one place on
    for start in range(capacity):
        assert u32[first] == start
        device.calls.clear()
        stores(guest, count)
        assert [call[2] for call in device.calls] == list(range(count, 0, -1))
    assert u32[first] == 0


def test_a_batch_is_one_exit(guest: Accesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred writes, and the guest leaves the kernel for its HLT, not for them."""
    device = Recorder()
    guest.machine.mmio.attach(device, MMIO, 0x100).coalesce = True
    monkeypatch.setattr(shortcuts, "LATEST", 1000)
    stores(guest, 1)
    assert guest.machine._ticker is not None
    guest.machine._ticker.close()  # its thread brings writes too, whenever it comes to run
    drains: list[int] = []
    kept = guest.machine.engine.shortcuts
    before = kept.drain
    monkeypatch.setattr(kept, "drain", lambda vcpu: (before(vcpu), drains.append(len(device.calls))))
    device.calls.clear()
    stores(guest, 100)
    assert drains[-1] == 100 and len(drains) <= 5, "a signal to the thread ends a batch too"


def test_writes_over_pages_and_odd_sizes_are_as_they_would_be(guest: Accesses) -> None:
    """Cut at the page, and into the bus's sizes, as without coalescing."""
    seen = []
    for coalesce in (False, True):
        device = Recorder()
        region = guest.machine.mmio.attach(device, MMIO, 0x2000)
        region.coalesce = coalesce
        guest.make([Op(MMIO + 0x1000 - before, 8, 0x0807060504030201) for before in range(9)])
        seen.append(device.calls)
        region.detach()
    assert seen[0] == seen[1] and (0xFFD, 2, 0x0201) in seen[0]


def test_another_cpus_write_is_there_before_this_ones_read() -> None:
    """One CPU writes a coalesced register, then RAM; the other sees it and reads the register: the value is there."""

    class Register(Device):
        value = 0

        def read(self, offset: int, size: int) -> int:
            return self.value

        def write(self, offset: int, size: int, value: int) -> None:
            self.value = value

    writer = code64("""
        ff c1     ; again: inc ecx
        89 0b     ; mov [rbx], ecx
        89 0f     ; mov [rdi], ecx
        39 4f 08  ; wait: cmp [rdi + 8], ecx
        75 fb     ; jne wait
        39 d1     ; cmp ecx, edx
        75 f1     ; jne again
        f4        ; hlt
    """)
    reader = code64("""
        ff c1     ; again: inc ecx
        39 0f     ; wait: cmp [rdi], ecx
        75 fc     ; jne wait
        3b 0b     ; cmp ecx, [rbx]
        75 07     ; jne bad
        89 4f 08  ; mov [rdi + 8], ecx
        39 d1     ; cmp ecx, edx
        75 ef     ; jne again
        f4        ; bad: hlt
    """)
    with Accesses("kvm", 2) as guest:
        guest.machine.mmio.attach(Register(), MMIO, 8).coalesce = True
        for vcpu, at, code in zip(guest.machine.vcpus, (CODE, CODE + 0x1000), (writer, reader), strict=True):
            guest.memory.write(at, code)
            registers = guest._start.restore(guest._start.save())
            registers.rip, registers.rbx, registers.rdi, registers.rcx, registers.rdx = at, MMIO, DATA, 0, 60
            vcpu.registers = registers
        assert guest.machine.run(timeout=60) == HltExit()
        assert [vcpu.registers.rcx for vcpu in guest.machine.vcpus] == [60, 60]


SPIN = code64("""
    c7 03 2a 00 00 00  ; mov dword ptr [rbx], 42
    c6 47 08 01        ; mov byte ptr [rdi + 8], 1
    80 3f 00           ; wait: cmp byte ptr [rdi], 0
    74 fb              ; je wait
    f4                 ; hlt
""")


class Answering(Device):
    """Lets the guest that waits in RAM go on when it is written."""

    def __init__(self, guest: Accesses) -> None:
        self.guest = guest

    def write(self, offset: int, size: int, value: int) -> None:
        self.guest.memory.write(DATA, b"\1")


def test_a_guest_that_waits_in_ram_waits_no_longer_than_the_limit(guest: Accesses) -> None:
    """Without another exit of the guest's, a coalesced write is brought within LATEST."""
    guest.machine.mmio.attach(Answering(guest), MMIO, 8).coalesce = True
    guest.memory.write(CODE, SPIN)
    guest.set(rip=CODE)
    guest.finish()


def test_a_timer_finds_the_writes_made_before_it(guest: Accesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring is emptied before timers fire, also when nothing else empties it."""
    monkeypatch.setattr(shortcuts, "LATEST", 1000)
    device = Recorder()
    guest.machine.mmio.attach(device, MMIO, 8).coalesce = True
    clock, seen = guest.machine.clock, [None]

    def look() -> None:
        seen.append(list(device.calls) if guest.word(8, 1) else None)
        if None in seen[-2:]:  # what came just before this look, the next one finds
            timer.arm(clock.now() + 1_000_000)
        else:
            guest.memory.write(DATA, b"\1")

    timer = clock.timer(look)
    with guest.machine.lock:
        timer.arm(clock.now() + 1_000_000)
    guest.memory.write(CODE, SPIN)
    guest.set(rip=CODE)
    guest.finish()
    assert seen[-1] == [(0, 4, 42)]


def test_a_doorbell_does_not_wait_in_the_ring(guest: Accesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a coalesced region a doorbell comes out at once, and the writes before it with it."""
    monkeypatch.setattr(shortcuts, "LATEST", 1000)
    device = Recorder()
    region = guest.machine.mmio.attach(device, MMIO, 16)
    region.coalesce = True
    bell = region.doorbell(0, 4)
    guest.memory.write(CODE, Op(MMIO + 8, 4, 1).code() + code64("bb 00 00 00 10  ; mov ebx, 0x10000000") + SPIN)
    guest.set(rip=CODE)
    runner = threading.Thread(target=guest.finish)
    runner.start()
    assert bell.wait(60) == 1
    assert device.calls == [(8, 4, 1)]
    guest.memory.write(DATA, b"\1")
    runner.join()


def test_a_change_from_outside_does_not_turn_writes_away(guest: Accesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that wait in the ring when their region moves were made at its old place, and reach it there."""
    monkeypatch.setattr(shortcuts, "LATEST", 1000)
    device, other = Recorder(), Recorder()
    region = guest.machine.mmio.attach(device, MMIO, 8)
    region.coalesce = True
    guest.memory.write(CODE, SPIN)
    guest.set(rip=CODE)
    runner = threading.Thread(target=guest.finish)
    runner.start()
    while not guest.word(8, 1):
        pass
    region.move(MMIO + 0x1000)
    guest.machine.mmio.attach(other, MMIO, 8)
    guest.memory.write(DATA, b"\1")
    runner.join()
    assert (device.calls, other.calls) == ([(0, 4, 42)], [])


def test_a_devices_exception_loses_no_other_write(guest: Accesses) -> None:
    """It comes out of `run`, and the next run goes on behind it: with the batch, and the exit that brought it."""

    class Picky(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            super().write(offset, size, value)
            if value == 3:
                raise ZeroDivisionError("three")

    device = Picky()
    guest.machine.mmio.attach(device, MMIO, 8, name="picky").coalesce = True
    guest.memory.write(CODE, STORES)
    guest.set(rip=CODE, rcx=5)
    with pytest.raises(DeviceError, match="region 'picky': 4-byte write of 0x3 at address 0x10000000") as caught:
        guest.machine.run(timeout=60)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    guest.finish()
    assert [call[2] for call in device.calls] == [5, 4, 3, 2, 1]


def test_a_kick_comes_after_the_writes(guest: Accesses) -> None:
    """A spinning guest that is kicked out of guest code has all its writes at the device."""
    device = Recorder()
    guest.machine.mmio.attach(device, MMIO, 8).coalesce = True
    guest.memory.write(CODE, code64("89 0b  ; again: mov [rbx], ecx\nff c1  ; inc ecx\neb fa  ; jmp again"))
    guest.set(rip=CODE, rcx=0)
    kicker = threading.Timer(0.05, guest.vcpu.kick)
    kicker.start()
    assert guest.vcpu.run() == KickExit()
    kicker.join()
    registers = guest.vcpu.registers
    assert [call[2] for call in device.calls] == list(range(len(device.calls)))
    assert registers.rcx - len(device.calls) in (0, -1), "the store is made, or also counted"


def test_a_reset_forgets_the_writes_under_way(guest: Accesses) -> None:
    """What a device's exception kept from the devices is not brought to them after a reset."""

    class Broken(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            super().write(offset, size, value)
            if value == 3:
                raise ZeroDivisionError

    device = Broken()
    guest.machine.mmio.attach(device, MMIO, 8).coalesce = True
    with pytest.raises(DeviceError):
        stores(guest, 5)
    guest.machine.reset()
    guest.start()
    stores(guest, 1)
    assert [call[2] for call in device.calls] == [5, 4, 3, 1]


def test_more_zones_than_the_kernel_takes(guest: Accesses) -> None:
    """What is beyond its thousand comes out, and is in order with the rest."""
    log: list[int] = []

    class Logging(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            log.append(value)

    count = 1050
    for number in range(count):
        guest.machine.mmio.attach(Logging(), MMIO + 8 * number, 8).coalesce = True
    guest.memory.write(CODE, code64("""
        89 0b        ; again: mov [rbx], ecx
        48 83 c3 08  ; add rbx, 8
        ff c1        ; inc ecx
        39 d1        ; cmp ecx, edx
        75 f4        ; jne again
        f4           ; hlt
    """))  # fmt: skip
    guest.set(rip=CODE, rcx=0, rdx=count)
    guest.finish()
    assert log == list(range(count))
    assert 900 < taken(guest)[1] < count


def test_what_leaves_while_it_is_being_registered_is_withdrawn(
    guest: Accesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A doorbell that is closed just as a starting vCPU registers it: the kernel does not keep it."""
    region = guest.machine.mmio.attach(Recorder(), MMIO, 8)
    bell = region.doorbell(0, 4)
    kept: Any = guest.machine.engine.shortcuts  # type: ignore[union-attr]
    register, closer = kept._ioeventfd, threading.Thread(target=lambda: region._remove_doorbell(bell))

    def slowly(*arguments: Any) -> None:
        if not closer.ident:
            closer.start()
            closer.join(0.05)  # it waits for what happens here, or has not seen it
        register(*arguments)

    monkeypatch.setattr(kept, "_ioeventfd", slowly)
    guest.store(MMIO + 4, 4, 1)
    closer.join()
    assert taken(guest) == (0, 0)


@pytest.mark.parametrize("change", ["move", "enable", "bell"])
def test_changes_while_the_guest_writes_lose_and_double_nothing(guest: Accesses, change: str) -> None:
    """A region moves to and fro, is off and on, or has its doorbell taken away, while the guest writes to one place.

    Each write rings, or is at the device, or comes to the caller: exactly one of these.
    """
    device = Recorder()
    region = guest.machine.mmio.attach(device, MMIO, 8)
    bell = region.doorbell(0, 4)
    guest.memory.write(CODE, code64("""
        89 0b              ; again: mov [rbx], ecx
        ff c9              ; dec ecx
        75 fa              ; jnz again
        c6 07 01           ; mov byte ptr [rdi], 1
        f4                 ; hlt
    """))  # fmt: skip
    count, rings = 20000, 0
    guest.set(rip=CODE, rcx=count)
    runner = threading.Thread(target=guest.finish)
    runner.start()
    places, states = itertools.cycle([MMIO + 0x100, MMIO]), itertools.cycle([False, True])
    while not guest.word(size=1):
        if change == "move":
            region.move(next(places))
        elif change == "enable":
            region.enable(next(states))
        else:
            old, rings = bell, rings + bell.take()
            with guest.machine.lock:  # no write between the two is the device's
                region._remove_doorbell(old)
                rings += old.take()
                bell = region.doorbell(0, 4)
            old.close()
    runner.join()
    rings += bell.take()
    assert rings + len(device.calls) + sum(guest.machine.unclaimed.values()) == count
