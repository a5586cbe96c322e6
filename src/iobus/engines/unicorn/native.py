"""Running with guest-mode intercepts: the library's own exception code, and an exit for what concerns us.

The library is QEMU's TCG, which emulates AMD's SVM, and its checks for intercepted events work without
a VMRUN: a flag in hflags says "this is a guest", fields of the CPU state say what is intercepted, and an
intercepted event arrives in the interrupt hook as 0x100 + its SVM exit code, with RIP and all registers
exact at the instruction. So MSRs, CR8, HLT and the interrupt window are AMD's documented architecture
(AMD64 APM vol. 2, chapter 15 and appendix C), not guesses.

Getting in from outside is the same mechanism. `poke` raises an SMI request, which is intercepted at the
next block whatever the interrupt flag says and stays raised until the intercept clears it: no poke is
lost. A virtual interrupt request, intercepted too, comes exactly when the interrupt window opens.

"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Final

from iobus.cpu_registers import EFER_LMA, RFLAGS_IF, RFLAGS_TF
from iobus.engines.unicorn import internals as at
from iobus.engines.unicorn import library as uc_api
from iobus.engines.unicorn import syscalls
from iobus.engines.unicorn.cpu import UnicornCpu
from iobus.engines.unicorn.cpuid import CR4_OFFERED
from iobus.engines.unicorn.cpustate import CpuState
from iobus.engines.unicorn.deliver import Event, TripleFault, deliver
from iobus.engines.unicorn.msrs import ADDRESSES, Msrs
from iobus.engines.unicorn.native_instance import REQUEST_NMI, REQUEST_VIRQ, NativeInstance
from iobus.engines.unicorn.tsc import GuestTsc
from iobus.exits import EngineError, ShutdownExit
from iobus.vcpu import VCPU

# SVM exit codes (APM vol. 2, appendix C), as the interrupt hook brings them.
_READ_CR8, _WRITE_CR4, _WRITE_CR8 = 0x108, 0x114, 0x118
_SMI, _VINTR, _PAUSE, _HLT, _INVLPGA, _MSR, _SHUTDOWN = 0x162, 0x164, 0x177, 0x178, 0x17A, 0x17C, 0x17F
_UNDEFINED: Final = (*range(0x180, 0x187), _INVLPGA, 0x18A, 0x18B, 0x18C)
"""VMRUN and its kin, MONITOR and MWAIT: CPUID does not offer them, so they are #UD."""

INTERCEPTS: Final = sum(1 << code - 0x160 for code in (_SMI, _VINTR, _HLT, _MSR, _SHUTDOWN, *_UNDEFINED))
_PAUSES: Final = 1 << _PAUSE - 0x160

_HARDWARE, _FAULT = 0x100, 0x200  # what the stub is asked to deliver
_UD, _GP, _DB, _NMI = 6, 13, 1, 2
_AN_INSTRUCTION: Final = 20e-6  # seconds, in which one is done by far

_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_REG_DR6, _DR6_BS = 72, 1 << 14
_HF_TF, _HF_CS64, _HF_RF, _HF_IOBPT = 1 << 8, 1 << 15, 1 << 16, 1 << 24
_CR4_PAE = 1 << 5


class NativeCpu(UnicornCpu):
    """A vCPU that runs with guest-mode intercepts."""

    traps_msrs = True

    instance: NativeInstance

    def __init__(self, instance: NativeInstance, vcpu: VCPU) -> None:
        super().__init__(instance, vcpu)
        self._offsets: Final = instance.offsets
        self.copy: Final = instance.new_state()
        """The state while it is not in the library's CPU; NMI requests are then in `requested`."""
        self.requested = 0
        self._live: Final = instance.live
        self._requests: Final = instance.requests
        callback = uc_api.INTERCEPT_CB(self._on_intercept)
        instance.callbacks.append(callback)
        self.intercept: Final = ctypes.cast(callback, ctypes.c_void_p).value
        """What the stub calls while it is in the library's CPU."""
        self._alone: Final = len(vcpu.machine.vcpus) == 1
        if self._alone:  # then its state is always in there
            instance.put_in(self)
        self.tsc = GuestTsc(instance.tsc, self._tsc_offset)
        self._msrs = Msrs(self.tsc.read, self._advance_tsc)

    # UnicornCpu's requirements.

    def state(self) -> CpuState:
        return self._live if self.instance.current is self else self.copy

    def rflags(self) -> int:
        if self._in_slice:
            flags: int = self.instance.read_eflags(self.instance.env)
            return flags | 2
        return self.state().flags(running=False)

    def enter(self) -> None:
        instance = self.instance
        instance.put_in(self)
        instance.drop_stale()
        if not self._alone:
            pause = _PAUSES if self.runner.contended() else 0
            self._live.u64[self._offsets.intercept >> 3] = INTERCEPTS | pause
        instance.poke()  # a stop consumed the last one, and may have left an interrupt waiting
        error = self.library.emu_start(self.uc, self._live.rip)
        if error and self._exit is None and not self._errors:
            raise EngineError(
                f"unicorn stopped at rip {self._live.rip:#x}: {self.library.error_text(error)} (error {error})"
            )

    def leave(self) -> None:
        if not self._alone and self.instance.current is self:
            self.instance.take_out()

    def flush(self) -> None:
        if self.instance.current is self:
            self.library.flush_tlb(self.uc)

    def power_on(self) -> None:
        self._msrs.reset()
        self.instance.power_on(self)

    def tsc_hz(self) -> Callable[[], int] | None:
        return self.instance.tsc.hz

    def on_sysenter(self) -> None:
        """SYSENTER, or its #GP, done in Python: nothing here leaves by longjmp."""
        state, flags = self._live, self.rflags()
        after = syscalls.sysenter(state, flags, lambda index: self.library.read_msr(self.uc, index))
        if after is None:
            try:
                after = deliver(self.vcpu, state, flags, Event(_GP, 0))
            except TripleFault:
                self._exit, after = ShutdownExit(state.rip), flags
                self._stop()
            state.rip = state.rip - syscalls.LENGTH & _MASK64  # the library steps over it
        state.set_flags(after, running=True)
        state.update_hflags()

    # Intercepts. Called by the stub, between two instructions of the guest.

    def _on_intercept(self, _: int, code: int, __: int) -> int:
        """Deal with an intercepted event; return what the stub has to deliver, or 0."""
        try:
            if code == _SMI:
                self._requests[0] = 0
                return self._attend()
            if code == _VINTR:
                return self._attend()
            if code == _MSR:
                return self._on_msr()
            if code in (_READ_CR8, _WRITE_CR8):
                return self._on_cr8()
            if code == _HLT:
                return self._on_hlt()
            if code == _WRITE_CR4:
                return self._on_cr4()
            if code == _PAUSE:
                return self._on_pause()
            if code == _SHUTDOWN:
                self._exit = ShutdownExit(self._live.rip)
                return self._stop()
            if code in _UNDEFINED:
                return self._fault(_UD)
            raise EngineError(f"unicorn: unexpected intercept {code:#x} at rip {self._live.rip:#x}")
        except BaseException as exc:
            self.fail(exc)
            return 0

    def _attend(self) -> int:
        """Stop if asked to; take an NMI or an interrupt; else see that the interrupt window is told."""
        if self.instance.stale:
            self.instance.drop_stale()
        if self.runner.attention:
            return self._stop()
        self.called = False  # before looking
        requests = self._requests[1] & REQUEST_NMI  # the library takes it when no other NMI is in service
        u32, vector, controller = self._live.u32, None, self.vcpu.controller
        open_ = u32[at.EFLAGS >> 2] & RFLAGS_IF
        if shadow := u32[at.HFLAGS >> 2] & at.HF_INHIBIT_IRQ:
            open_ = 0
        if self._nmis:
            if u32[at.HFLAGS2 >> 2] & at.HF2_NMI:
                self._nmis.clear()
                requests |= REQUEST_NMI
            elif shadow:
                requests |= self._behind_shadow()
            else:
                self._nmis.popleft()
                u32[at.HFLAGS2 >> 2] |= at.HF2_NMI  # IRET clears it
                vector, open_ = _NMI, 0
                if self._nmis:
                    self._nmis.clear()
                    requests |= REQUEST_NMI
        if controller is not None:
            with self.machine.lock:
                if open_ and controller.pending():
                    vector = controller.acknowledge()
                if controller.pending():  # masked now, or behind the first: come back when the window opens
                    requests |= REQUEST_VIRQ
        self._requests[1] = requests
        if requests:
            self.instance.icount_high[0] = 0xFFFF
        return 0 if vector is None else _HARDWARE | vector

    def nmi(self) -> None:
        if self.nmi_in_service():  # one is kept for when that has ended, and no more
            requested = self._requests[1] if self.instance.current is self else self.requested
            if self._nmis or requested & REQUEST_NMI:
                return
        super().nmi()

    def nmi_wakes(self) -> bool:
        return bool(self._nmis) and not self.nmi_in_service()

    def nmi_in_service(self) -> bool:
        """Whether an NMI's handler has not come to its IRET."""
        return bool(self.state().u32[at.HFLAGS2 >> 2] & at.HF2_NMI)

    def _behind_shadow(self) -> int:
        """Have `_attend` called behind the shadow of STI or of MOV to SS; return what to request of the library."""
        if self._live.u32[at.EFLAGS >> 2] & RFLAGS_IF:
            return REQUEST_VIRQ  # its window opens there
        later = threading.Timer(_AN_INSTRUCTION, self.instance.poke)
        later.daemon = True
        later.start()
        return 0

    def length_of_out(self) -> int:
        """In an OUT: its length if an interrupt or NMI is to be taken right behind it, else 0.

        0 also where its block of code is known to end there: in a shadow, and while stepping.
        """
        u32, controller = self._live.u32, self.vcpu.controller
        if u32[at.HFLAGS >> 2] & (at.HF_INHIBIT_IRQ | _HF_TF | _HF_RF | _HF_IOBPT):
            return 0
        if not (self._nmis and not self.nmi_in_service()):
            if controller is None or not u32[at.EFLAGS >> 2] & RFLAGS_IF:
                return 0
            with self.machine.lock:
                if not controller.pending():
                    return 0
        code, prefixes = self._instruction()
        if code[prefixes] in b"\xe6\xe7":
            return prefixes + 2
        return prefixes + 1 if code[prefixes] in b"\xee\xef" else 0

    def _stop(self) -> int:
        """Leave guest code. An interrupt that waits for its window is found again on coming back."""
        self.runner.attention = True  # the library may yet bring a poke: not the time to take an interrupt
        self._requests[1] &= REQUEST_NMI
        self.library.stop(self.uc)
        return 0

    def _on_hlt(self) -> int:
        trap = self._skip(self._instruction()[1] + 1)
        if trap:
            return trap
        self.halted = self._interrupted = True
        runner = self.runner
        if self._live.u32[at.EFLAGS >> 2] & RFLAGS_IF and not runner.contended():  # nobody else to run: sleep here
            runner.wait_until(lambda: runner.attention or self.wakes())
        return self._stop() if self.halted else self._attend()

    def _on_pause(self) -> int:
        """Let another vCPU run, for this one waits in a loop: intercepted only where there is another."""
        trap = self._skip(self._instruction()[1] + 1)
        self.runner.give_way(self)
        return trap or self._stop()

    def _on_msr(self) -> int:
        u32, u64 = self._live.u32, self._live.u64
        index = u32[2]  # ECX
        if u32[self._offsets.error_code >> 2]:
            done = self._write_msr(index, (u32[4] << 32) | u32[0])  # EDX:EAX
        else:
            value = self._read_msr(index)
            done = value is not None
            if value is not None:
                u64[0], u64[2] = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
        if not done:
            return self._fault(_GP, 0)
        return self._skip(self._instruction()[1] + 2)

    def _read_msr(self, index: int) -> int | None:
        controller = self.vcpu.controller
        if controller is not None:
            with self.machine.lock:
                value = controller.read_msr(index)
            if value is not None:
                return value
        return self._msrs.read(index)

    def _write_msr(self, index: int, value: int) -> bool:
        if index in ADDRESSES:
            if value + (1 << 47) & _MASK64 >= 1 << 48:
                return False
            self.instance.write_msr(index, value)
            return True
        controller = self.vcpu.controller
        if controller is not None:
            with self.machine.lock:
                if controller.write_msr(index, value):
                    return True
        return self._msrs.write(index, value)

    def _on_cr8(self) -> int:
        """MOV to or from CR8: 0F 20/22 with REX.R, or AMD's LOCK MOV CR0."""
        code, prefixes = self._instruction()
        rex = code[prefixes - 1] if prefixes and code[prefixes - 1] & 0xF0 == 0x40 else 0
        opcode, modrm = code[prefixes + 1], code[prefixes + 2]
        register = modrm & 7 | (rex & 1) << 3
        u64, controller = self._live.u64, self.vcpu.controller
        with self.machine.lock:
            if opcode == 0x20:
                u64[register] = controller.read_cr8() if controller is not None else 0
            else:
                value = u64[register]
                if value & ~0xF:
                    return self._fault(_GP, 0)
                if controller is not None:
                    controller.write_cr8(value)
        return self._skip(prefixes + 3)

    def _on_cr4(self) -> int:
        """MOV to CR4: a bit that CPUID does not offer faults, and so does clearing PAE in long mode."""
        code, prefixes = self._instruction()
        rex = code[prefixes - 1] if prefixes and code[prefixes - 1] & 0xF0 == 0x40 else 0
        live = self._live
        value = live.u64[code[prefixes + 2] & 7 | (rex & 1) << 3]
        if not live.u32[at.HFLAGS >> 2] & _HF_CS64:
            value &= 0xFFFFFFFF
        if value & ~CR4_OFFERED or (live.u64[at.EFER >> 3] & EFER_LMA and not value & _CR4_PAE):
            return self._fault(_GP, 0)
        self.instance.update_cr4(self.instance.env, value)
        return self._skip(prefixes + 3)

    def _instruction(self) -> tuple[bytes, int]:
        """The code at RIP and the number of its prefix bytes."""
        state = self._live
        linear = state.rip + state.u64[at.SEGMENTS + 24 + 8 >> 3]
        hflags = state.u32[at.HFLAGS >> 2]
        if not hflags & 1 << 14:
            linear &= 0xFFFFFFFF
        code = self.library.read_code(self.uc, linear & _MASK64, 15)
        count = 0
        while count < len(code) and (code[count] in _PREFIXES or (hflags & 1 << 15 and code[count] & 0xF0 == 0x40)):
            count += 1
        return code, count

    def _skip(self, length: int) -> int:
        """Step over the intercepted instruction; return the single-step trap if one is due."""
        state = self._live
        state.rip += length
        state.u32[at.HFLAGS >> 2] &= ~at.HF_INHIBIT_IRQ
        if state.u32[at.EFLAGS >> 2] & RFLAGS_TF:
            dr6 = self.library.read_register(self.uc, _REG_DR6)
            self.library.write_register(self.uc, _REG_DR6, dr6 | _DR6_BS)
            return self._fault(_DB)
        return 0

    def _fault(self, vector: int, error_code: int = 0) -> int:
        """Have the stub raise an exception, with what a fault in its delivery is judged by."""
        u32 = self._live.u32
        u32[self._offsets.error_code >> 2] = error_code
        u32[self._offsets.old_exception >> 2] = vector if vector == _GP else 0xFFFFFFFF
        return _FAULT | vector

    def _tsc_offset(self) -> int:
        return self.state().u64[self._offsets.tsc_offset >> 3]

    def _advance_tsc(self, ticks: int) -> None:
        u64, index = self.state().u64, self._offsets.tsc_offset >> 3
        u64[index] = u64[index] + ticks & _MASK64


_MASK64: Final = (1 << 64) - 1
