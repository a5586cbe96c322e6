"""Several vCPUs on the Unicorn engine: INIT and start-up, halts, kicks and stops, and devices that fail or wait.

They take turns, with guest-mode intercepts only. What guest code sees of the others is in test_vcpus.py.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from rig import SmpGuest, code16, code64

from iobus.bus import Device, DeviceError
from iobus.cpu_registers import Registers
from iobus.engines.unicorn.cpu import UnicornCpu
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import EngineError, HltExit, KickExit, MmioExit, PowerOffExit, TimeoutExit
from iobus.machine import Machine

SPIN = code64("""
    48 ff c1  ; inc rcx
    eb fb     ; jmp .-3
""")


# INIT and start-up.

ICR_WAIT = """
        f3 90                          ; wait: pause
        39 0f                          ; cmp [rdi], ecx
        75 fa                          ; jne wait
        f4                             ; hlt
"""


START_UP = code64(f"""
    45 85 ff                       ; test r15d, r15d
    75 fe                          ; jnz .
    c7 83 00 03 00 00 00 45 0c 00  ; mov dword ptr [rbx + 0x300], 0xc4500
    c7 83 00 03 00 00 08 46 0c 00  ; mov dword ptr [rbx + 0x300], 0xc4608
    c7 83 00 03 00 00 08 46 0c 00  ; mov dword ptr [rbx + 0x300], 0xc4608
    {ICR_WAIT}
""")
"""The first vCPU sends INIT and twice start-up at 0x8000 to all others, and waits for a count of RCX in DATA."""


STARTED = code16("""
    66 b8 01 00 00 00        ; mov eax, 1
    bb 00 30                 ; mov bx, 0x3000
    8e db                    ; mov ds, bx
    66 f0 0f c1 06 00 00     ; lock xadd [0], eax
    89 c3                    ; mov bx, ax
    8c 8f 00 01              ; mov [bx + 0x100], cs
    f4                       ; hlt
""")
"""Real-mode code that counts itself at 0x30000, and leaves its CS above."""


def test_sixteen_vcpus_start() -> None:
    """INIT and two start-up messages to all others start each of them once, in real mode, at the vector's page."""
    with SmpGuest(START_UP, cpus=16) as guest:
        guest.set_all(rcx=15)
        guest.memory.write(0x8000, STARTED)
        guest.finish()
        assert guest.word() == 15
        for vcpu in guest.vcpus[1:]:
            r = vcpu.registers
            assert (r.cs.selector, r.cs.base, r.rip, r.cr0 & 1) == (0x800, 0x8000, len(STARTED), 0)


def test_vcpus_wait_until_they_are_started() -> None:
    """After a reset all but the first have nothing to run, and a start-up message without INIT does nothing more."""
    with SmpGuest(b"\xf4", cpus=3) as guest:
        guest.machine.reset()
        guest.start()
        guest.machine.reset()
        for vcpu in guest.vcpus[1:]:
            for _ in range(2):
                assert vcpu.run() == HltExit()
            before = vcpu.registers
            assert before == Registers(rdx=before.rdx, cr0=before.cr0)
        guest.memory.write(0x8000, STARTED)
        one, other = guest.vcpus[1:]
        one.startup(8)
        assert one.run() == HltExit()
        assert (guest.word(), one.registers.rip) == (1, len(STARTED))
        one.startup(8)
        assert one.run() == HltExit()
        assert (guest.word(), one.registers.rip) == (1, len(STARTED))
        assert other.run() == HltExit()
        assert other.registers == Registers(rdx=before.rdx, cr0=before.cr0)


def test_a_running_vcpu_takes_an_init() -> None:
    """Whatever it does: spinning with interrupts off it is stopped, and started somewhere else."""
    program = code64(f"""
        45 85 ff                       ; test r15d, r15d
        75 fe                          ; jnz .
        b9 01 00 00 00                 ; mov ecx, 1
        c7 83 10 03 00 00 00 00 00 01  ; mov dword ptr [rbx + 0x310], 0x1000000
        c7 83 00 03 00 00 00 45 00 00  ; mov dword ptr [rbx + 0x300], 0x4500
        c7 83 00 03 00 00 08 46 00 00  ; mov dword ptr [rbx + 0x300], 0x4608
        {ICR_WAIT}
    """)
    with SmpGuest(program, cpus=2) as guest:
        guest.memory.write(0x8000, STARTED)
        guest.finish()
        assert guest.word() == 1


@pytest.mark.parametrize("cpus", [1, 2])
def test_the_first_vcpus_own_init_takes_it_to_the_reset_vector(cpus: int) -> None:
    """It goes on there at once, with its registers as at reset."""
    program = code64("""
        c7 83 10 03 00 00 00 00 00 00  ; mov dword ptr [rbx + 0x310], 0
        c7 83 00 03 00 00 00 45 00 00  ; mov dword ptr [rbx + 0x300], 0x4500
        eb fe                          ; jmp .
    """)
    with SmpGuest(program, cpus=cpus) as guest:
        guest.memory.add(0xFFFF0000, 0x10000)
        guest.memory.write(0xFFFFFFF0, code16("f4 ; hlt"))
        for vcpu in guest.vcpus[1:]:
            vcpu.init()
        r = guest.finish()
        assert (r.rip, r.cs.base, r.cr0 & 1, r.rbx) == (0xFFF1, 0xFFFF0000, 0, 0)


def test_an_init_drops_no_error_of_a_device() -> None:
    """A device raises in the access that also brings an INIT: the run raises it, the next one starts anew."""

    class Broken(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            guest.vcpus[1].init()
            raise ZeroDivisionError("on purpose")

    program = code64("""
        45 85 ff  ; test r15d, r15d
        75 01     ; jnz other
        f4        ; hlt
        e6 10     ; other: out 0x10, al
        eb fe     ; jmp .
    """)
    with SmpGuest(program, cpus=2) as guest:
        guest.machine.pio.attach(Broken(), 0x10, 1)
        with pytest.raises(DeviceError, match="on purpose"):
            guest.machine.run(timeout=20)
        guest.finish()
        assert guest.vcpus[1].registers.rip == 0xFFF0


# Halted, kicked, stopped.


def test_halted_vcpus_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one of sixteen computes for half a second, not one of the others is given a turn after its HLT."""
    turns: Counter[int] = Counter()
    slice_ = UnicornCpu.slice

    def counted(cpu: UnicornCpu) -> None:
        turns[cpu.vcpu.index] += 1
        slice_(cpu)

    monkeypatch.setattr(UnicornCpu, "slice", counted)
    program = code64("""
        fb        ; sti
        45 85 ff  ; test r15d, r15d
        74 fe     ; jz .
        f4        ; hlt
    """)
    with SmpGuest(program, cpus=16) as guest:
        assert guest.machine.run(timeout=0.2) == TimeoutExit(0.2)
        while any(turns[index] == 0 for index in range(16)):
            guest.machine.run(timeout=0.1)
        assert all(vcpu.executor.halted for vcpu in guest.vcpus[1:])  # type: ignore[attr-defined]
        turns.clear()
        assert guest.machine.run(timeout=0.3) == TimeoutExit(0.3)
        assert set(turns) == {0}
        assert turns[0] < 50  # nobody to give way to: slices would be 150. A thread that begins or ends makes a turn


def test_all_vcpus_that_spin_get_their_share() -> None:
    """Of four that never give way each has run a tenth of the time at least."""
    with SmpGuest(SPIN, cpus=4) as guest:
        while True:
            assert guest.machine.run(timeout=0.2) == TimeoutExit(0.2)
            loops = [vcpu.registers.rcx for vcpu in guest.vcpus]
            if min(loops) * 10 > sum(loops):
                break


def test_one_vcpu_runs_alone_when_only_it_is_run() -> None:
    """`VCPU.run` runs that one; the others keep still."""
    with SmpGuest(SPIN, cpus=2) as guest:
        alarm = threading.Timer(0.05, guest.vcpus[1].kick)
        alarm.start()
        while guest.vcpus[1].registers.rcx == 0:
            assert guest.vcpus[1].run() == KickExit()
            guest.vcpus[1].kick()
        alarm.join()
        assert guest.vcpus[0].registers.rcx == 0


def test_each_kick_ends_its_vcpus_run_and_no_other() -> None:
    """Four vCPUs spin, each run by a thread; each is kicked a hundred times, at any moment."""
    count = 100
    with SmpGuest(SPIN, cpus=4) as guest:
        returned = [threading.Semaphore(0) for _ in guest.vcpus]
        exits: list[list[object]] = [[] for _ in guest.vcpus]

        def run(index: int) -> None:
            for _ in range(count):
                exits[index].append(guest.vcpus[index].run())
                returned[index].release()

        threads = [threading.Thread(target=run, args=(vcpu.index,)) for vcpu in guest.vcpus]
        for thread in threads:
            thread.start()
        for number in range(count):
            for index, vcpu in enumerate(guest.vcpus):
                vcpu.kick()
                assert returned[index].acquire(timeout=20), (number, index)
                assert len(exits[index]) == number + 1
        for thread in threads:
            thread.join()
        assert exits == [[KickExit()] * count] * 4


def test_a_machine_whose_vcpus_spin_is_stopped() -> None:
    """`Machine.stop` from another thread ends the run, and it can be run on."""
    with SmpGuest(SPIN, cpus=16) as guest:
        for _ in range(3):
            alarm = threading.Timer(0.05, guest.machine.stop, (PowerOffExit(),))
            alarm.start()
            assert guest.machine.run(timeout=20) == PowerOffExit()
            alarm.join()


# Devices.


class Faulty(Device):
    """Raises at every write."""

    def write(self, offset: int, size: int, value: int) -> None:
        raise ZeroDivisionError("on purpose")


OUTS = code64("""
    b8 01 00 00 00        ; mov eax, 1
    44 89 f9              ; mov ecx, r15d
    d3 e0                 ; shl eax, cl
    ba 10 00 00 00        ; mov edx, 0x10
    44 01 fa              ; add edx, r15d
    ee                    ; out dx, al
    f0 09 07              ; lock or [rdi], eax
    f4                    ; hlt
""")
"""Each vCPU writes to a port of its own and sets a bit of its own."""


def test_an_error_of_a_device_ends_the_run_once_and_the_machine_goes_on() -> None:
    """Of the access of vCPU 1; the others come to their ends, and so does that one in the next run."""
    with SmpGuest(OUTS, cpus=3) as guest:
        guest.machine.pio.attach(Faulty(), 0x11, 1)
        with pytest.raises(DeviceError, match="on purpose") as caught:
            guest.machine.run(timeout=20)
        assert (caught.value.address, caught.value.value) == (0x11, 2)
        guest.finish()
        assert guest.word() == 7


def test_an_access_that_waits_for_its_caller_keeps_its_vcpu() -> None:
    """Each vCPU reads where nobody is: each exit says which one, is answered, and that one gets the answer."""
    program = code64("""
        8b 06                 ; again: mov eax, [rsi]
        44 01 f8              ; add eax, r15d
        eb 00                 ; jmp .+2
        01 04 af              ; add [rdi + 4 * rbp], eax
        ff c9                 ; dec ecx
        75 f2                 ; jnz again
        f4                    ; hlt
    """)
    count, cpus = 20, 3
    with SmpGuest(program, cpus=cpus) as guest:
        guest.set_all(rsi=0x10000000, rcx=count)
        for vcpu in guest.vcpus:
            registers = vcpu.registers
            registers.rbp = vcpu.index
            vcpu.registers = registers
        seen: Counter[int] = Counter()
        while (exit := guest.machine.run(timeout=20, unclaimed="stop")) != HltExit():
            assert isinstance(exit, MmioExit) and not exit.is_write
            vcpu = guest.machine.exited
            seen[vcpu.index] += 1
            assert vcpu.registers.r15 == vcpu.index
            exit.data = 1000 * seen[vcpu.index]
        total = 1000 * count * (count + 1) // 2
        assert [guest.word(4 * index, 4) for index in range(cpus)] == [total + index * count for index in range(cpus)]


def test_while_an_access_waits_for_its_caller_others_can_be_kicked() -> None:
    """They do not run meanwhile, but their callers get them back."""
    program = code64("""
        45 85 ff  ; test r15d, r15d
        75 05     ; jnz other
        e4 10     ; in al, 0x10
        f4        ; hlt
        66 90     ; nop
        48 ff c1  ; other: inc rcx
        eb fb     ; jmp other
    """)
    with SmpGuest(program, cpus=2) as guest:
        exit = guest.vcpus[0].run()
        thread_exits: list[object] = []
        thread = threading.Thread(target=lambda: thread_exits.append(guest.vcpus[1].run()))
        thread.start()
        time.sleep(0.01)
        guest.vcpus[1].kick()
        thread.join(20)
        assert thread_exits == [KickExit()]
        exit.data = 0x42  # type: ignore[union-attr]
        assert guest.vcpus[0].run() == HltExit()
        assert guest.vcpus[0].registers.rax == 0x42


def test_resetting_several_vcpus_of_which_one_waits_for_its_caller() -> None:
    """The access ends, unseen by anybody; all are as after a reset."""
    seen: list[int] = []

    class Port(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            seen.append(value)

    program = code64("""
        45 85 ff  ; test r15d, r15d
        74 fe     ; jz .
        e4 10     ; in al, 0x10
        e6 11     ; out 0x11, al
        eb fe     ; jmp .
    """)
    with SmpGuest(program, cpus=2) as guest:
        guest.machine.pio.attach(Port(), 0x11, 1)
        guest.machine.run(timeout=20, unclaimed="stop")
        assert guest.machine.exited is guest.vcpus[1]
        guest.machine.reset()
        assert [vcpu.registers.rip for vcpu in guest.vcpus] == [0xFFF0, 0xFFF0]
        while (exit := guest.vcpus[1].run()) == KickExit():  # left over from the pause
            pass
        assert exit == HltExit()
        assert not seen


# The engine.


def test_the_fallback_says_that_it_runs_one_vcpu() -> None:
    """An `EngineError` that names the number asked for."""
    with pytest.raises(EngineError, match="runs 1 vCPU, not 2"):
        Machine(UnicornEngine("fallback"), cpus=2)


def test_machines_of_many_vcpus_leave_no_thread() -> None:
    """Neither the engine's nor the one that ends slices."""
    before = threading.active_count()
    for _ in range(3):
        with SmpGuest(SPIN, cpus=4) as guest:
            guest.machine.run(timeout=0.02)
    assert threading.active_count() == before
