"""What comes to a vCPU on KVM at a bad moment is kept, and what is from before an INIT is not behind it.

The LAPICs are in Python here; test_kvm_races_irqchips.py has those in the kernel. Each test makes one moment happen
that is otherwise rare: a message just while the one before is taken, a stop just under Ctrl-C.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from accesses import Accesses
from kvm_rig import Guest, SmpGuest, init, needs_kvm, nmi, startup, until
from rig import CODE, DATA, MMIO, Vectors, code16, code64

from iobus.bus import Device, DeviceError
from iobus.engines.kvm import cpustate, ioctls, shortcuts
from iobus.exits import HltExit, KickExit, PioExit, PowerOffExit

pytestmark = needs_kvm

SPINS = code64("""
    4d 85 ff           ; test r15, r15
    74 08              ; jz boot
    c7 07 01 00 00 00  ; mov dword ptr [rdi], 1
    eb fe              ; jmp .
    f4                 ; boot: hlt
""")
"""The second CPU says that it runs, and spins; the first halts for ever."""


def test_a_start_up_message_while_init_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """INIT comes to a running CPU, and the start-up message while its thread is busy with that: it starts."""
    with SmpGuest(SPINS, cpus=2) as guest, ThreadPoolExecutor(1) as pool:
        guest.memory.write(0x18000, code16("""
            e6 80  ; out 0x80, al
            f4     ; hlt
        """))  # fmt: skip
        running = pool.submit(guest.machine.run, timeout=60, unclaimed="stop")
        until(lambda: guest.word(size=4) == 1)
        real = cpustate.init

        def and_startup(fd: int, signature: int) -> None:
            real(fd, signature)
            with guest.machine.lock:
                guest.lapics[1].accept(startup(1, 0x18))

        monkeypatch.setattr(cpustate, "init", and_startup)
        with guest.machine.lock:
            guest.lapics[1].accept(init(1))
        assert running.result() == PioExit(0x80, 1, True, 0)


def test_cr8_from_before_an_init() -> None:
    """What a CPU wrote to CR8, which makes no exit, is not in its LAPIC's TPR behind an INIT."""
    program = code64("""
        4d 85 ff           ; test r15, r15
        74 11              ; jz boot
        b8 0f 00 00 00     ; mov eax, 15
        44 0f 22 c0        ; mov cr8, rax
        c7 07 01 00 00 00  ; mov dword ptr [rdi], 1
        eb fe              ; jmp .
        f4                 ; boot: hlt
    """)
    with SmpGuest(program, cpus=2) as guest, ThreadPoolExecutor(1) as pool:
        running = pool.submit(guest.machine.run, timeout=60)
        until(lambda: guest.word(size=4) == 1)
        with guest.machine.lock:
            guest.lapics[1].accept(init(1))
        assert running.result() == HltExit()
        assert guest.lapics[1].state.tpr == 0


def test_a_lapic_write_from_before_an_init() -> None:
    """A CPU is on its way to write its LAPIC's TPR when INIT comes: behind INIT the TPR is 0."""
    program = code64("""
        4d 85 ff                       ; test r15, r15
        74 12                          ; jz boot
        c7 07 01 00 00 00              ; again: mov dword ptr [rdi], 1
        c7 83 80 00 00 00 f0 00 00 00  ; mov dword ptr [rbx + 0x80], 0xf0
        eb ee                          ; jmp again
        f4                             ; boot: hlt
    """)
    with SmpGuest(program, cpus=2) as guest, ThreadPoolExecutor(1) as pool:
        running = pool.submit(guest.machine.run, timeout=60)
        until(lambda: guest.word(size=4) == 1)
        with guest.machine.lock:
            until(lambda: guest.machine.lock.waiting)
            guest.lapics[1].accept(init(1))
        assert running.result() == HltExit()
        assert guest.lapics[1].state.tpr == 0


def test_an_init_while_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run first makes CR8 what the LAPIC's TPR is: an INIT comes before that or after it, and both are 0 then."""
    with SmpGuest(SPINS, cpus=2) as guest, ThreadPoolExecutor(1) as pool:
        lapic, cpu = guest.lapics[1], guest.vcpus[1].executor
        lapic.write_cr8(15)
        real, sent = cpu.set_cr8, []  # type: ignore[attr-defined]

        def send() -> None:
            with guest.machine.lock:
                lapic.accept(init(1))

        def and_init(value: int) -> None:
            if not sent:
                assert value == 15
                sent.append(pool.submit(send))
                until(lambda: sent[0].done() or guest.machine.lock.waiting)
            real(value)

        monkeypatch.setattr(cpu, "set_cr8", and_init)
        assert guest.vcpus[1].run() == HltExit()
        assert (lapic.state.tpr, cpu.cr8) == (0, 0)  # type: ignore[attr-defined]


def test_an_nmi_from_before_an_init() -> None:
    """An NMI that comes to a CPU that waits for start-up is dropped by the next INIT (SDM 9.4, 11.4.7)."""
    with SmpGuest(SPINS, cpus=2) as guest:
        guest.memory.write(0x18000, code16("""
            bc 00 70  ; mov sp, 0x7000
            e6 80     ; out 0x80, al
            f4        ; hlt
        """))  # fmt: skip
        guest.memory.write(8, struct.pack("<HH", 0, 0x1700))
        guest.memory.write(0x17000, code16("""
            e6 81  ; out 0x81, al
            f4     ; hlt
        """))  # fmt: skip
        with guest.machine.lock:
            for message in (init(1), nmi(1), init(1), startup(1, 0x18)):
                guest.lapics[1].accept(message)
        assert guest.machine.run(timeout=60, unclaimed="stop") == PioExit(0x80, 1, True, 0)


def test_an_nmi_while_an_nmis_handler_is_halted() -> None:
    """It waits there until the handler has been left: the IRET of an interrupt that ends the halt lets it in."""
    with Guest(b"\xeb\xfe") as guest, ThreadPoolExecutor(1) as pool:  # jmp .
        guest.gate(2, code64("""
            48 ff 04 25 00 00 03 00     ; inc qword ptr [0x30000]
            48 83 3c 25 00 00 03 00 02  ; cmp qword ptr [0x30000], 2
            74 0d                       ; je done
            fb                          ; sti
            f4                          ; hlt
            48 83 3c 25 00 00 03 00 02  ; again: cmp qword ptr [0x30000], 2
            75 f5                       ; jne again
            fa                          ; done: cli
            f4                          ; hlt
        """), CODE + 0x1000)  # fmt: skip
        guest.gate(0x40, code64("48 cf  ; iretq"), CODE + 0x1800)
        controller, cpu = Vectors(guest.machine), guest.vcpu.executor
        running = pool.submit(guest.machine.run, timeout=60)

        def sleeps() -> bool:
            return cpu._halted and cpu._open and not cpu.attention  # type: ignore[attr-defined]

        guest.vcpu.nmi()
        until(lambda: guest.word() == 1 and sleeps())
        guest.vcpu.nmi()
        until(sleeps)
        controller.request(0x40)
        assert running.result() == HltExit()
        assert guest.word() == 2


def test_cr8_from_before_a_coalesced_write_that_fails() -> None:
    """A device's exception ends the run with what the guest had written to CR8."""
    program = code64("""
        b8 05 00 00 00           ; mov eax, 5
        44 0f 22 c0              ; mov cr8, rax
        89 0c 25 00 00 00 10     ; mov [0x10000000], ecx
        f4                       ; hlt
    """)

    class Broken(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            raise ZeroDivisionError

    with SmpGuest(program) as guest:
        guest.machine.mmio.attach(Broken(), MMIO, 8).coalesce = True
        with pytest.raises(DeviceError):
            guest.machine.run(timeout=60)
        guest.finish()
        assert (guest.lapics[0].state.tpr, guest.lapics[0].read_cr8()) == (0x50, 5)


def test_a_held_cpu_does_not_finish_an_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kicked in the middle of one, a vCPU gets ready to finish it when `hold` comes: it waits for the release."""
    program = code64("""
        8b 03  ; mov eax, [rbx]
        f4     ; hlt
    """)

    class Kicks(Device):
        def read(self, offset: int, size: int) -> int:
            guest.vcpu.kick()
            return 7

    with Guest(program) as guest:
        guest.machine.mmio.attach(Kicks(), MMIO, 8)
        cpu: Any = guest.vcpu.executor
        finish_first, ioctl = cpu._finish_first, fcntl.ioctl
        seen: list[str] = []

        class Released(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                seen.append("waits")
                cpu.release()
                return super().wait(timeout)

        def and_hold() -> bool:
            result: bool = finish_first()
            if not seen:
                seen.append("held")
                holder = threading.Thread(target=cpu.hold)
                holder.start()
                holder.join()
            return result

        def watched(fd: int, request: int, *argument: Any) -> Any:
            if (fd, request) == (cpu.fd, int(ioctls.KVM_RUN)) and cpu._held:
                seen.append("runs")
            return ioctl(fd, request, *argument)

        monkeypatch.setattr(cpu, "_released", Released())
        monkeypatch.setattr(cpu, "_finish_first", and_hold)
        monkeypatch.setattr(fcntl, "ioctl", watched)
        assert guest.vcpu.run() == KickExit()
        assert seen == ["held", "waits"]
        assert guest.vcpu.registers.rax == 7


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_stop_under_ctrl_c(cpus: int) -> None:
    """A device stops the machine just when Ctrl-C comes: the next run says so before the guest goes a step further."""
    program = code64("""
        e6 80  ; out 0x80, al
        ff 07  ; again: inc dword ptr [rdi]
        eb fc  ; jmp again
    """)
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    class Off(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            if interrupted.is_set():
                return
            until(lambda: cpus == 1 or guest.machine.lock.waiting)  # the other CPU is on its way here, not in the guest
            guest.machine.stop(PowerOffExit())
            os.kill(os.getpid(), signal.SIGINT)
            gang = guest.machine._gang
            until(lambda: interrupted.is_set() and (gang is None or gang._pausing))

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with SmpGuest(program, cpus=cpus) as guest:
            guest.machine.pio.attach(Off(), 0x80, 1)
            with pytest.raises(KeyboardInterrupt):
                guest.machine.run(timeout=60)
            count = guest.word(size=4)
            assert guest.machine.run(timeout=0.2) == PowerOffExit()
            assert guest.word(size=4) == count
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_zone_that_comes_back_while_the_guest_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observers come and go, and the zone of coalesced writes with them: each write is there before the next read."""
    program = code64("""
        ff c1                 ; again: inc ecx
        89 0b                 ; mov [rbx], ecx
        8b 03                 ; mov eax, [rbx]
        39 c8                 ; cmp eax, ecx
        75 06                 ; jne bad
        80 3f 00              ; cmp byte ptr [rdi], 0
        74 f1                 ; je again
        f4                    ; hlt
        c7 47 08 01 00 00 00  ; bad: mov dword ptr [rdi + 8], 1
        f4                    ; hlt
    """)

    class Echo(Device):
        value = 0

        def read(self, offset: int, size: int) -> int:
            return self.value

        def write(self, offset: int, size: int, value: int) -> None:
            self.value = value

    real = shortcuts.Shortcuts._coalesce

    def slow(self: Any, zone: Any, request: ioctls.Ioctl) -> None:
        real(self, zone, request)
        if request == ioctls.KVM_REGISTER_COALESCED_MMIO:
            time.sleep(0.003)  # the thread may be kept from the GIL here as long, and the guest goes on

    def watch(_: object) -> None: ...

    monkeypatch.setattr(shortcuts.Shortcuts, "_coalesce", slow)
    with Accesses("kvm") as guest, ThreadPoolExecutor(1) as pool:
        guest.machine.mmio.attach(Echo(), MMIO, 8).coalesce = True
        guest.memory.write(CODE, program)
        guest.set(rip=CODE, rcx=0)
        path, running = guest.vcpu.mmio_path, pool.submit(guest.finish)
        for _ in range(20):
            path.observe(watch)
            path.ignore(watch)
            time.sleep(0.0005)  # the guest writes with the zone there, too
        guest.memory.write(DATA, b"\1")
        running.result()
        assert guest.word(8, 4) == 0, "a read saw an older write"
