"""What other threads ask of a vCPU on KVM: kicks, wake-ups, signals; several vCPUs. Nothing is lost or waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from bus_devices import Recorder
from kvm_rig import KICKS, Guest, needs_hardware, needs_kvm
from rig import CODE, DATA, MMIO, Vectors, code16, code64

from iobus.engines.kvm import abi, ioctls
from iobus.engines.kvm.cpu_user import UserCpu
from iobus.engines.kvm.ioctls import call
from iobus.engines.kvm.kick import KICK
from iobus.exits import EngineError, HltExit, KickExit, PioExit, PowerOffExit, TimeoutExit

pytestmark = needs_kvm

STI_SHADOW = 2
"""KVM_X86_SHADOW_INT_STI, of kvm_vcpu_events.interrupt.shadow."""

SPIN = code64("""
    48 ff c1  ; inc rcx
    eb fb     ; jmp .-3
""")


def test_of_ten_thousand_kicks_none_is_lost() -> None:
    """Each comes as soon as the last one's run has returned, at any moment of the next run; some in guest code."""
    with Guest(b"\xff\x07\xeb\xfc") as guest:  # inc dword ptr [rdi]; jmp .-2
        returned = threading.Semaphore(0)
        ends = []

        def kicks() -> None:
            for number in range(KICKS):
                if number % 50 == 0:
                    before = guest.word(size=4)
                    while guest.word(size=4) == before:
                        time.sleep(0)
                guest.vcpu.kick()
                returned.acquire()

        def runs() -> None:
            for _ in range(KICKS):
                ends.append(guest.vcpu.run())
                returned.release()

        threads = [threading.Thread(target=target, daemon=True) for target in (kicks, runs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends == [KickExit()] * KICKS


def test_a_vcpu_runs_on_whichever_thread_calls() -> None:
    """On the main thread, then on two others, each with a kick from yet another."""
    with Guest(SPIN) as guest:
        exits = []

        def run() -> None:
            kicker = threading.Timer(0.005, guest.vcpu.kick)
            kicker.start()
            exits.append(guest.vcpu.run())
            kicker.join()

        run()
        for _ in range(2):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        run()
        assert exits == [KickExit()] * 4


def test_neither_the_gil_nor_the_machines_lock_is_held_in_guest_code() -> None:
    """While a guest spins in another thread, this one computes, and takes the lock as often as it likes."""
    with Guest(b"\xff\x07\xeb\xfc") as guest:  # inc dword ptr [rdi]; jmp .-2
        thread = threading.Thread(target=guest.vcpu.run)
        thread.start()
        while not guest.word(size=4):
            pass
        for _ in range(1000):
            with guest.machine.lock:
                before = guest.word(size=4)
        while guest.word(size=4) == before:
            pass
        guest.vcpu.kick()
        thread.join()


def test_a_callers_thread_keeps_its_signals() -> None:
    """The signal mask is after a run what it was before; signals the thread blocks stay blocked in guest code."""
    with Guest(SPIN) as guest:
        masks = []

        def run() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # would end the process
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            assert guest.vcpu.run() == KickExit()
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            masks.append(signal.sigpending())
            signal.sigtimedwait({signal.SIGUSR1}, 0)

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.01)  # some of it in guest code, wherever that ends
        guest.vcpu.kick()
        thread.join()
        assert masks[0] == masks[1] and KICK not in masks[1]
        assert masks[2] == {signal.SIGUSR1}


def test_a_stray_signal_does_no_harm() -> None:
    """The signal that kicks use, from somebody else: the guest goes on, and the process too."""
    with Guest(SPIN) as guest:
        os.kill(os.getpid(), KICK)
        assert guest.machine.run(timeout=0.02) == TimeoutExit(0.02)
        os.kill(os.getpid(), KICK)


def test_a_handler_in_python_stops_the_machine() -> None:
    """A signal's handler runs on the main thread while the guest spins, and ends its run."""
    with Guest(SPIN) as guest:
        before = signal.signal(signal.SIGALRM, lambda *_: guest.machine.stop(PowerOffExit()))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            assert guest.machine.run(timeout=60) == PowerOffExit()
        finally:
            signal.signal(signal.SIGALRM, before)


def test_a_second_ctrl_c_gives_up_waiting() -> None:
    """A device that never returns: the first Ctrl-C waits for it, the second leaves, and the vCPU is lost."""
    script = f"""
import os, signal, sys, threading, time
sys.path[:0] = {sys.path!r}
from kvm_rig import Guest
from iobus.bus import Device
from iobus.exits import EngineError

class Stuck(Device):
    def write(self, offset, size, value):
        threading.Thread(target=interrupts, daemon=True).start()
        threading.Event().wait()

def interrupts():
    os.kill(os.getpid(), signal.SIGINT)
    while not guest.vcpu.executor._kicked:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

guest = Guest(bytes.fromhex("e610f4"))
guest.machine.pio.attach(Stuck(), 0x10, 1)
try:
    guest.vcpu.run()
except KeyboardInterrupt:
    print("interrupted")
try:
    guest.vcpu.run()
except EngineError as exc:
    print(exc, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "interrupted\na run of this vCPU was abandoned\n", done.stderr


@pytest.mark.parametrize("wake", ["interrupt", "nmi", "kick"])
def test_a_halted_guest_is_woken_from_another_thread(wake: str) -> None:
    """HLT with interrupts on sleeps in `run`: an interrupt or an NMI runs its handler, a kick returns."""
    program = code64("""
        fb     ; sti
        f4     ; hlt
        eb fd  ; jmp .-1
    """)
    with Guest(program) as guest:
        handler = code64("""
            48 ff 04 25 00 00 03 00  ; inc qword ptr [0x30000]
            48 cf                    ; iretq
        """)
        guest.gate(2, handler, CODE + 0x1000)
        guest.gate(0x40, handler, CODE + 0x1000)
        controller = Vectors(guest.machine)
        act = {"interrupt": lambda: controller.request(0x40), "nmi": guest.vcpu.nmi, "kick": lambda: None}[wake]

        def acts() -> None:
            for count in range(20):
                act()
                while wake != "kick" and guest.word() <= count:
                    time.sleep(0.0001)
            guest.vcpu.kick()

        thread = threading.Thread(target=acts)
        thread.start()
        assert guest.vcpu.run() == KickExit()
        thread.join()
        assert guest.word() == (0 if wake == "kick" else 20)


@needs_hardware
def test_an_nmi_held_up_by_sti_ends_the_halt_behind_it() -> None:
    """Right behind STI an NMI waits for one more instruction: is that HLT, the CPU does not sleep over the NMI.

    The vCPU is put there by the kernel's word of the shadow of STI: a signal that comes just then does the same.
    """
    with Guest(code64("f4 fa f4  ; hlt; cli; hlt")) as guest:
        guest.gate(2, code64("""
            48 ff 04 25 00 00 03 00  ; inc qword ptr [0x30000]
            48 cf                    ; iretq
        """), CODE + 0x1000)  # fmt: skip
        guest.set(rflags=0x202)
        executor = guest.vcpu.executor
        assert isinstance(executor, UserCpu)
        events = abi.VcpuEvents(flags=ioctls.KVM_VCPUEVENT_VALID_SHADOW)
        events.interrupt.shadow = STI_SHADOW
        call(executor.fd, ioctls.KVM_SET_VCPU_EVENTS, events)
        guest.vcpu.nmi()
        guest.finish()
        assert guest.word() == 1


def test_a_halted_guest_waits_without_running() -> None:
    """In HLT with interrupts on nothing is executed, and each of many interrupts wakes it once."""
    program = code64("""
        fb     ; sti
        f4     ; hlt
        ff 07  ; inc dword ptr [rdi]
        eb fb  ; jmp .-3
    """)
    with Guest(program) as guest:
        guest.gate(0x40, code64("48 cf  ; iretq"), CODE + 0x1000)
        controller, executor = Vectors(guest.machine), guest.vcpu.executor
        assert isinstance(executor, UserCpu)
        thread = threading.Thread(target=guest.vcpu.run)
        thread.start()
        for count in range(50):
            deadline = time.monotonic() + 60
            while guest.word(size=4) < count or not executor._halted:  # one that comes before HLT is taken before it
                assert time.monotonic() < deadline
            controller.request(0x40)
        while guest.word(size=4) < 50:
            pass
        guest.vcpu.kick()
        thread.join()
        assert guest.word(size=4) == 50


# Several vCPUs.

ON_AP = code16("""
    8c c8        ; mov ax, cs
    a3 00 e0     ; mov [0xe000], ax
    ff 06 02 e0  ; inc word ptr [0xe002]
    f4           ; hlt
""")
"""For real mode: notes CS, counts, and halts for ever."""


def test_a_start_up_message_starts_a_waiting_cpu_and_no_other() -> None:
    """SIPI: at vector << 12 in real mode. A second one, or one without INIT before it, changes nothing (SDM 9.4)."""
    with Guest(b"\xf4", cpus=2) as guest:
        guest.memory.write(0xC000, ON_AP)
        boot, other = guest.machine.vcpus
        assert guest.machine.run(timeout=60) == HltExit()
        boot.startup(0xC)
        other.startup(0xC)
        other.startup(0xD)
        assert guest.machine.run(timeout=60) == HltExit()
        assert [guest.memory.load(0xE000, 2), guest.memory.load(0xE002, 2)] == [0xC00, 1]
        assert boot.registers.rip == CODE + 1
        other.startup(0xC)
        assert guest.machine.run(timeout=60) == HltExit()
        assert guest.memory.load(0xE002, 2) == 1


def test_init_of_a_running_cpu_takes_it_out_of_guest_code() -> None:
    """A CPU that spins is put to wait for start-up by another's INIT, and starts anew with fresh registers."""
    with Guest(b"\xf4", cpus=2) as guest:
        guest.memory.write(0xC000, b"\x41\x89\x0e\x00\xf0\xeb\xf9")  # inc cx; mov [0xf000], cx; jmp .-5
        guest.memory.write(0xD000, ON_AP)
        _, other = guest.machine.vcpus
        assert guest.machine.run(timeout=60) == HltExit()
        other.startup(0xC)
        exits = []
        running = threading.Thread(target=lambda: exits.append(guest.machine.run(timeout=60)))
        running.start()
        while not guest.memory.load(0xF000, 2):
            pass
        with guest.machine.lock:  # as a LAPIC does
            other.init()
            other.startup(0xD)
        running.join()
        assert exits == [HltExit()]
        assert guest.memory.load(0xE002, 2) == 1
        assert other.registers.rcx == 0


def test_an_init_in_the_middle_of_an_access_drops_it() -> None:
    """An AP waits for its caller's answer when INIT comes: the answer changes nothing of its next life."""
    with Guest(b"\xf4", cpus=2) as guest:
        guest.memory.write(0xC000, b"\xe4\x10\xf4")  # in al, 0x10; hlt
        _, other = guest.machine.vcpus
        other.startup(0xC)
        exit = guest.machine.run(timeout=60, unclaimed="stop")
        assert exit == PioExit(0x10, 1, False)
        other.init()
        exit.data = 0x42
        assert guest.machine.run(timeout=60) == HltExit()
        assert (other.registers.rip, other.registers.rax & 0xFF) == (0xFFF0, 0)


def test_each_cpu_has_its_own_device_at_one_address() -> None:
    """Two CPUs run the same code at once and read the same address: each is answered by its own bus."""
    program = code64("""
        8b 03  ; mov eax, [rbx]
        89 07  ; mov [rdi], eax
        f4     ; hlt
    """)
    with Guest(program, cpus=2) as guest:
        boot, other = guest.machine.vcpus
        devices = [Recorder(0x11111111), Recorder(0x22222222)]
        for vcpu, device in zip(guest.machine.vcpus, devices, strict=True):
            vcpu.mmio.attach(device, MMIO, 4)
        guest.memory.write(0xC000, b"\xf4")
        other.startup(0xC)
        assert guest.machine.run(timeout=60) == HltExit()
        registers = boot.registers
        registers.rip, registers.rdi = CODE, DATA + 8
        other.registers = registers
        guest.set(rip=CODE)
        assert guest.machine.run(timeout=60) == HltExit()
        assert (guest.word(0, 4), guest.word(8, 4)) == (0x11111111, 0x22222222)
        assert [len(device.calls) for device in devices] == [2, 1]


def test_two_cpus_halt_and_wake_each_other() -> None:
    """Both halt for ever: that is `HltExit`; an NMI to one of them runs it again while the other stays."""
    with Guest(b"\xf4\xff\x07\xf4", cpus=2) as guest:  # hlt; inc dword ptr [rdi]; hlt
        guest.gate(2, code64("48 cf  ; iretq"), CODE + 0x1000)
        assert guest.machine.run(timeout=60) == HltExit()
        assert guest.word(size=4) == 0
        with guest.machine.lock:
            guest.vcpu.nmi()
        assert guest.machine.run(timeout=60) == HltExit()
        assert guest.word(size=4) == 1


def test_one_machine_an_engine() -> None:
    """A second machine on one engine is refused in a sentence."""
    from iobus.machine import Machine

    with Guest(b"\xf4") as guest:
        assert isinstance(guest.vcpu.executor, UserCpu)
        with pytest.raises(EngineError, match="serves one machine"):
            Machine(guest.machine.engine)
