"""What comes to a vCPU at a bad moment is kept, where KVM has the LAPICs (`split`) or all controllers (`kernel`).

As test_kvm_races.py, whose LAPICs are in Python. What a bad moment is here: the kernel takes INITs, start-ups and NMIs
by itself, and a look at a vCPU from outside, which finds out whether all sleep, can come in between.
"""

from __future__ import annotations

import fcntl
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
import rig
from kvm_rig import init, needs_kvm, nmi, startup, until
from rig import Vectors, code16

from iobus.bus import Device
from iobus.doorbell import Event
from iobus.engines.kvm import abi, ioctls
from iobus.engines.kvm.engine import KvmEngine
from iobus.engines.kvm.ioctls import call
from iobus.exits import HltExit, KickExit, PioExit, TimeoutExit
from iobus.pc.pc import Pc

pytestmark = needs_kvm

Kind = Literal["split", "kernel"]
both = pytest.mark.parametrize("kind", ["split", "kernel"])

BEGUN = 0x500
"""Where a guest says that it runs."""
SPINS = code16("""
    c6 06 00 05 01  ; mov byte ptr [0x500], 1
    fb              ; sti
    eb fe           ; jmp .
""")
NMI_HANDLER = 0x17000
"""CS of what handles NMIs is 0x1700."""


class ChipGuest(rig.RealModeGuest):
    """A guest in real mode, its interrupt controllers in the kernel, the LAPICs as a PC's firmware leaves them."""

    def __init__(self, kind: Kind, program: bytes = SPINS, cpus: int = 1) -> None:
        self.kind: Kind = kind
        super().__init__(program, cpus=cpus)

    def engine(self) -> KvmEngine:
        self.kvm = KvmEngine(self.kind)
        return self.kvm

    def start(self) -> None:
        super().start()
        assert self.kvm.irqchip is not None
        self.chip: Any = self.kvm.irqchip
        self.bus = self.chip.apic_bus
        self.chip.virtual_wire()
        self.memory.write(4 * 2, struct.pack("<HH", 0, NMI_HANDLER >> 4))

    def rounds(self, index: int) -> int:
        """How many times in a row a vCPU was found asleep, as it counts with those who look whether all are."""
        return self.kvm.sleepers._slept[index]

    def requests(self) -> int:
        """The IOAPIC's interrupt requests, a bit a pin."""
        state = abi.Irqchip(chip_id=ioctls.KVM_IRQCHIP_IOAPIC)
        call(self.kvm.vm.fd, ioctls.KVM_GET_IRQCHIP, state)
        irr: int = struct.unpack_from("<I", state, 24)[0]
        return irr


@both
def test_an_init_in_the_middle_of_an_access(kind: Kind) -> None:
    """A look at the vCPU does not have the kernel take the INIT before the instruction is done, which then goes on."""

    class Slow(Device):
        def read(self, offset: int, size: int) -> int:
            guest.bus.send(init(1))
            guest.bus.send(startup(1, 0x20))
            sleepers, cpu = guest.kvm.sleepers, guest.machine.vcpus[1].executor
            begun = sleepers._round
            until(lambda: sleepers._round > begun and cpu.attention)  # type: ignore[attr-defined]
            return 0

    with ChipGuest(kind, cpus=2) as guest:
        guest.machine.vcpus[1].mmio.attach(Slow(), 0x50000, 0x1000)
        guest.memory.write(0x18000, code16("""
            b8 00 50  ; mov ax, 0x5000
            8e d8     ; mov ds, ax
            a1 00 00  ; mov ax, [0]
            e6 80     ; out 0x80, al
            f4        ; hlt
        """))  # fmt: skip
        guest.memory.write(0x20000, code16("""
            e6 81  ; out 0x81, al
            f4     ; hlt
        """))  # fmt: skip
        guest.bus.send(init(1))
        guest.bus.send(startup(1, 0x18))
        assert guest.machine.run(timeout=60, unclaimed="stop") == PioExit(0x81, 1, True, 0)


@both
def test_an_init_under_way_at_a_reset(kind: Kind) -> None:
    """The first CPU has an INIT that it has not taken when the machine is reset: that INIT does not come after it."""
    program = code16("""
        e6 80  ; out 0x80, al
        f4     ; hlt
    """)
    with ChipGuest(kind, program) as guest:
        guest.bus.send(init(0))
        guest.machine.reset()
        guest.start()
        assert guest.machine.run(timeout=60, unclaimed="stop") == PioExit(0x80, 1, True, 0)


@both
def test_an_nmi_message_when_all_sleep(kind: Kind) -> None:
    """All CPUs have halted for ever and left the kernel: an NMI that is sent then is taken by the next run."""
    with ChipGuest(kind, b"\xf4\xf4") as guest:  # hlt; hlt
        guest.memory.write(NMI_HANDLER, code16("""
            e6 81  ; out 0x81, al
            cf     ; iret
        """))  # fmt: skip
        assert guest.machine.run(timeout=60) == HltExit()
        with guest.machine.lock:
            assert guest.bus.send(nmi(0))
        assert guest.machine.run(timeout=60, unclaimed="stop") == PioExit(0x81, 1, True, 0)


@both
def test_a_cpu_in_a_slow_device_is_not_asleep(kind: Kind) -> None:
    """CPU 0 was halted for long, is woken, and is then long in a device: what it sends from there still runs CPU 1.

    CPU 1 wakes it and halts. That the last one known of CPU 0 is its sleep does not end CPU 1's run for good.
    """

    class Slow(Device):
        def read(self, offset: int, size: int) -> int:
            until(lambda: guest.rounds(1) >= 2)
            guest.bus.send(nmi(1))  # as CPU 0 itself would do right after
            return 0

    class Waker(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            until(lambda: guest.rounds(0) >= 2)
            guest.bus.send(nmi(0))

    with ChipGuest(kind, b"\xf4\xf4\xf4", cpus=2) as guest:  # hlt; hlt; hlt
        guest.machine.pio.attach(Slow(), 0x90, 1)
        guest.machine.pio.attach(Waker(), 0x91, 1)
        guest.memory.write(NMI_HANDLER, code16("""
            81 fc 00 68     ; cmp sp, 0x6800
            77 06           ; ja cpu0
            2e ff 06 00 08  ; inc word ptr cs:[0x800]
            cf              ; iret
            e4 90           ; cpu0: in al, 0x90
            cf              ; iret
        """))  # fmt: skip
        guest.memory.write(0x18000, code16("""
            bc 00 60  ; mov sp, 0x6000
            e6 91     ; out 0x91, al
            f4        ; hlt
            f4        ; hlt
        """))  # fmt: skip
        guest.bus.send(init(1))
        guest.bus.send(startup(1, 0x18))
        assert guest.machine.run(timeout=60) == HltExit()
        assert guest.memory.load(NMI_HANDLER + 0x800, 2) == 1


@both
def test_an_nmi_to_a_cpu_that_waits_for_start_up(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is dropped, and the CPU waits in the kernel: it does not enter it again and again."""
    program = code16("""
        fb     ; sti
        f4     ; again: hlt
        eb fd  ; jmp again
    """)
    with ChipGuest(kind, program, cpus=2) as guest:
        waiting: Any = guest.machine.vcpus[1].executor
        ioctl, entries = fcntl.ioctl, 0

        def counted(fd: int, request: int, *argument: Any) -> Any:
            nonlocal entries
            entries += (fd, request) == (waiting.fd, int(ioctls.KVM_RUN))
            return ioctl(fd, request, *argument)

        monkeypatch.setattr(fcntl, "ioctl", counted)
        guest.machine.vcpus[1].nmi()
        assert guest.machine.run(timeout=0.5) == TimeoutExit(0.5)
        assert entries <= 10 + 2 * guest.kvm.sleepers._round, "more than it was looked at"


@both
def test_the_end_of_a_level_is_no_interrupt(kind: Kind) -> None:
    """Of a level-triggered MSI's two messages (SDM 11.11.2) the first requests its vector, the second nothing."""
    with ChipGuest(kind) as guest:
        cpu: Any = guest.vcpu.executor

        def requested() -> int:
            state = abi.LapicState()
            call(cpu.fd, ioctls.KVM_GET_LAPIC, state)
            irr: int = struct.unpack_from("<I", state, 0x220)[0]  # vectors 0x40-0x5f
            return irr

        with guest.machine.lock:
            guest.bus.msi(0xFEE00000, 0x8051)
            assert requested() == 0
            guest.bus.msi(0xFEE00000, 0xC051)
            assert requested() == 1 << 0x11


@pytest.mark.parametrize("kind", ["user", "split", "kernel"])
def test_the_nmi_line(kind: Any) -> None:
    """An edge at a PC's NMI line is an NMI, wherever the LAPICs are."""
    pc = Pc(KvmEngine(kind), memory=2 << 20)
    with pc.machine as machine, ThreadPoolExecutor(1) as pool:
        pc.controllers.virtual_wire()
        machine.vcpus[0].registers = rig.real_mode()
        machine.memory.write(4 * 2, struct.pack("<HH", 0, NMI_HANDLER >> 4))
        machine.memory.write(0x7C00, SPINS)
        machine.memory.write(NMI_HANDLER, code16("e6 f0  ; out 0xf0, al"))
        button = pc.nmi("button")
        running = pool.submit(machine.run, timeout=60, unclaimed="stop")
        until(lambda: machine.memory.load(BEGUN, 1))
        with machine.lock:
            button.pulse()
        assert running.result() == PioExit(0xF0, 1, True, 0)


def test_a_level_over_a_reset() -> None:
    """A line that its source holds up over a reset is there when the IOAPIC is asked after it."""
    with ChipGuest("kernel") as guest:
        with guest.machine.lock:
            guest.chip.set_line(20, True)
        assert guest.requests() == 1 << 20
        guest.machine.reset()
        assert guest.requests() == 1 << 20


def test_an_event_on_a_line_that_is_up() -> None:
    """A ring, an edge, does not take another source's level away: while that is up, rings are not the kernel's."""
    event = Event()
    with ChipGuest("kernel") as guest:
        told: list[bool] = []
        with guest.machine.lock:
            guest.chip.set_line(20, True)
            guest.chip.take_event(20, event, told.append)
        event.ring()
        end = time.monotonic() + 0.05  # the kernel makes edges of rings a little later, by a thread of its own
        while time.monotonic() < end:
            assert guest.requests() == 1 << 20
        assert told == [True]
        with guest.machine.lock:
            guest.chip.set_line(20, False)
        assert told == [True, False]


def test_an_8259s_vector_from_before_a_reset() -> None:
    """A kick comes when the vector has been given to the kernel and is not yet delivered: after a reset it is gone."""

    class Pic(Vectors):
        def acknowledge(self) -> int | None:
            self.machine.vcpus[0].kick()
            return super().acknowledge()

    with ChipGuest("split") as guest, ThreadPoolExecutor(1) as pool:
        pic = Pic(guest.machine)
        guest.memory.write(4 * 0x40, struct.pack("<HH", 0x7E00, 0))
        guest.memory.write(0x7E00, code16("e6 f0  ; out 0xf0, al"))
        running = pool.submit(guest.vcpu.run)
        until(lambda: guest.memory.load(BEGUN, 1))
        pic.request(0x40)
        assert running.result() == KickExit()
        guest.machine.reset()
        guest.start()
        # The kernel would deliver it when the vCPU is next looked at: in 0.2 s.
        assert guest.machine.run(timeout=0.5, unclaimed="stop") == TimeoutExit(0.5)
