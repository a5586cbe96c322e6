"""Running with guest-mode intercepts: the library's own exception code, and an exit for what concerns us.

The library is QEMU's TCG, which emulates AMD's SVM, and its checks for intercepted events work without
a VMRUN: a flag in hflags says "this is a guest", fields of the CPU state say what is intercepted, and an
intercepted event arrives in the interrupt hook as 0x100 + its SVM exit code, with RIP and all registers
exact at the instruction. So MSRs, CR8, HLT and the interrupt window are AMD's documented architecture
(AMD64 APM vol. 2, chapter 15 and appendix C), not guesses.

Getting in from outside is the same mechanism. `poke` raises an SMI request, which is intercepted at the
next block whatever the interrupt flag says and stays raised until the intercept clears it: no poke is
lost. A virtual interrupt request, intercepted too, comes exactly when the interrupt window opens.

`Native` refuses a library it does not know (`MismatchError`); then fallback.py runs the guest.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from iobus.cpu_registers import RFLAGS_IF, RFLAGS_TF
from iobus.engines.unicorn import internals as at
from iobus.engines.unicorn import library as uc_api
from iobus.engines.unicorn import syscalls
from iobus.engines.unicorn.cpu import UnicornCpu
from iobus.engines.unicorn.cpustate import CpuState
from iobus.engines.unicorn.deliver import Event, TripleFault, deliver
from iobus.engines.unicorn.msrs import UNTRAPPED, Msrs
from iobus.engines.unicorn.stubs import Stubs, Table
from iobus.exits import EngineError, ShutdownExit
from iobus.memory import Slot
from iobus.vcpu import VCPU

if TYPE_CHECKING:
    from iobus.engines.unicorn.engine import UnicornEngine

# SVM exit codes (APM vol. 2, appendix C), as the interrupt hook brings them.
_READ_CR8, _WRITE_CR8 = 0x108, 0x118
_SMI, _VINTR, _HLT, _INVLPGA, _MSR, _SHUTDOWN = 0x162, 0x164, 0x178, 0x17A, 0x17C, 0x17F
_UNDEFINED: Final = (*range(0x180, 0x187), _INVLPGA, 0x18A, 0x18B, 0x18C)
"""VMRUN and its kin, MONITOR and MWAIT: CPUID does not offer them, so they are #UD."""

_INTERCEPTS: Final = sum(1 << code - 0x160 for code in (_SMI, _VINTR, _HLT, _MSR, _SHUTDOWN, *_UNDEFINED))

# interrupt_request, by bytes: each byte has one writer, so that no read-modify-write can lose a bit.
_REQUEST_SMI: Final = 0x40  # byte 0: any thread
_REQUEST_VIRQ, _REQUEST_NMI = 0x01, 0x02  # byte 1: the vCPU's thread

_VMCB: Final = 1 << 45
"""Above the guest's physical address width: no page table entry of the guest can name it."""
_VMCB_MSRPM_BASE: Final = 0x48
_MSRPM: Final = 0x1000

_HARDWARE, _FAULT = 0x100, 0x200  # what the stub is asked to deliver
_UD, _GP, _DB = 6, 13, 1

_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_REG_DR6, _DR6_BS = 72, 1 << 14


class TscClock:
    """The host's time stamp counter, which the library hands to the guest, beside the machine's clock."""

    def __init__(self, read: Callable[[], int], now: Callable[[], int], offset: Callable[[], int]) -> None:
        self._read, self._now, self._offset = read, now, offset
        self._start = self._sample()
        self._hz = 0

    def read(self) -> int:
        """Return the guest's TSC."""
        return self._read() + self._offset() & _MASK64

    def deadline(self, tsc: int) -> int:
        """Return the clock's time in ns at which the guest's TSC reaches `tsc`."""
        return self._now() + (tsc - self.read()) * 1_000_000_000 // self.hz()

    def hz(self) -> int:
        """Return the TSC's frequency in Hz, measured once over at least 20 ms."""
        if not self._hz:
            while True:
                tsc, ns = self._sample()
                elapsed = ns - self._start[1]
                if elapsed >= 20_000_000:
                    break
                time.sleep((20_000_000 - elapsed) / 1e9)
            self._hz = (tsc - self._start[0]) * 1_000_000_000 // elapsed
        return self._hz

    def _sample(self) -> tuple[int, int]:
        """A pair of the counter and the host's time, of several the one taken fastest."""
        samples = []
        for _ in range(8):
            before, ns, after = self._read(), time.monotonic_ns(), self._read()
            samples.append((after - before, (before + after) // 2, ns))
        _, tsc, ns = min(samples)
        return tsc, ns


class NativeCpu(UnicornCpu):
    """A vCPU that runs with guest-mode intercepts."""

    traps_msrs = True

    def __init__(self, engine: UnicornEngine, vcpu: VCPU) -> None:
        super().__init__(engine, vcpu)
        library, offsets = self.library, at.locate(engine.library)
        cpu, env = at.find_env(library, self.uc, offsets)
        at.check_context(library, self.uc)
        self._offsets = offsets
        self._state = CpuState(memoryview((ctypes.c_ubyte * 0x1700).from_address(env)).cast("B"))
        self._requests = memoryview((ctypes.c_ubyte * 4).from_address(cpu + offsets.interrupt_request)).cast("B")
        icount = memoryview((ctypes.c_uint16 * 1).from_address(cpu + offsets.icount_high))
        self._icount_high = icount.cast("B").cast("H")
        ctypes.c_ubyte.from_address(self.uc + offsets.no_exit_request).value = 1
        self._env = env
        self._read_eflags = library.function("helper_read_eflags_x86_64", ctypes.c_uint64, ctypes.c_void_p)
        self._ram_address = library.function(
            "qemu_ram_addr_from_host_x86_64", ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p
        )
        self._drop_code = library.function(
            "tb_invalidate_phys_range_x86_64", None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64
        )
        self._ram: list[tuple[int, int, int]] = []  # gpa, size, the library's own address
        self._stale: list[tuple[int, int]] = []  # written from other threads, not yet dropped
        self._install(cpu, env)
        self.tsc = self._tsc = TscClock(self._stubs.rdtsc, self.machine.clock.now, self._tsc_offset)
        self._msrs = Msrs(self._tsc.read, self._write_tsc)

    def _install(self, cpu: int, env: int) -> None:
        offsets, library, u32, u64 = self._offsets, self.library, self._state.u32, self._state.u64
        page = mmap.mmap(-1, 0x4000)
        page[_VMCB_MSRPM_BASE : _VMCB_MSRPM_BASE + 8] = (_VMCB + _MSRPM).to_bytes(8, "little")
        permissions = bytearray(b"\xff" * 0x3000)
        for msr in UNTRAPPED:
            bit = (msr if msr < 0x2000 else msr - 0xC0000000 + 0x2000) * 2
            permissions[bit // 8] &= ~(3 << bit % 8)
        page[_MSRPM:] = bytes(permissions)
        self._vmcb = page  # the library holds only its address
        library.map_ram(self.uc, _VMCB, len(page), ctypes.addressof(ctypes.c_char.from_buffer(page)))
        u64[offsets.vm_vmcb >> 3] = _VMCB
        u64[offsets.intercept >> 3] = _INTERCEPTS
        for offset in (offsets.intercept_cr_read, offsets.intercept_cr_write):
            ctypes.c_uint16.from_address(env + offset).value = 1 << 8
        u32[at.HFLAGS >> 2] |= at.HF_GUEST

        def function(name: str) -> int:
            address = library.symbol(f"{name}_x86_64")
            if address is None:
                raise at.MismatchError(f"no function {name}_x86_64")
            return address

        self._table = table = Table(
            cpu=cpu, env=env,
            do_interrupt=function("x86_cpu_do_interrupt"), do_hardirq=function("do_interrupt_x86_hardirq"),
            raise_exception=function("raise_exception"),
            read_eflags=function("helper_read_eflags"), write_eflags=function("helper_write_eflags"),
            code_page=function("get_page_addr_code_hostp"), tlb_flush=function("tlb_flush"),
            exception_index=cpu + offsets.exception_index, is_int=env + offsets.exception_is_int,
            efer=env + at.EFER, star=env + offsets.star, lstar=env + offsets.lstar, cstar=env + offsets.cstar,
            fmask=env + offsets.fmask, hflags=env + at.HFLAGS, rip=env + at.RIP,
            seg_cs=env + at.SEGMENTS + 24, seg_ss=env + at.SEGMENTS + 48, rcx=env + 8, r11=env + 11 * 8,
            uc=self.uc, tlb_fill=function("x86_cpu_tlb_fill"), tlb_fast=env + offsets.tlb_fast,
            ram_address=function("qemu_ram_addr_from_host"), drop_code=function("tb_invalidate_phys_range"),
            error_code=env + offsets.error_code,
        )  # fmt: skip
        self._stubs = stubs = Stubs(table)
        intercept = uc_api.INTERCEPT_CB(self._on_intercept)
        self._callbacks.append(intercept)
        table.intercept = ctypes.cast(intercept, ctypes.c_void_p).value
        address = ctypes.addressof(table)
        self.hook(uc_api.HOOK_INTR, stubs.interrupt, address)
        self.hook(uc_api.HOOK_INSN_INVALID, stubs.invalid, address)
        self.hook(uc_api.HOOK_EDGE_GENERATED, stubs.edge, address)
        self.hook(uc_api.HOOK_INSN, stubs.syscall, address, uc_api.INSN_SYSCALL)
        self.hook(uc_api.HOOK_INSN, uc_api.SYSCALL_CB(self._on_sysenter), instruction=uc_api.INSN_SYSENTER)
        fill = ctypes.c_uint64.from_address(
            ctypes.c_uint64.from_address(env + offsets.cpu_class).value + offsets.class_tlb_fill
        )
        if fill.value != table.tlb_fill:
            raise at.MismatchError("the function that fills the TLB is not where expected")
        fill.value = stubs.fill

    def _on_sysenter(self, _: int, __: int) -> None:
        """SYSENTER, or its #GP, done in Python: nothing here leaves by longjmp."""
        try:
            state, flags = self._state, self.rflags()
            after = syscalls.sysenter(state, flags, lambda index: self.library.read_msr(self.uc, index))
            if after is None:
                try:
                    after = deliver(self.vcpu, state, flags, Event(_GP, 0))
                except TripleFault:
                    self._exit, after = ShutdownExit(state.rip), flags
                    self.library.stop(self.uc)
                state.rip = state.rip - syscalls.LENGTH & _MASK64  # the library steps over it
            state.set_flags(after, running=True)
            state.update_hflags()
        except BaseException as exc:
            self._fail(exc)

    # UnicornCpu's requirements.

    def state(self) -> CpuState:
        return self._state

    def rflags(self) -> int:
        if self._in_slice:
            flags: int = self._read_eflags(self._env)
            return flags | 2
        return self._state.flags(running=False)

    def poke(self) -> None:
        self._requests[0] = _REQUEST_SMI
        self._icount_high[0] = 0xFFFF

    def enter(self) -> None:
        self._drop_stale()
        self.poke()  # a stop consumed the last one, and may have left an interrupt waiting
        error = self.library.emu_start(self.uc, self._state.rip)
        if error and self._exit is None and self._error is None:
            raise EngineError(
                f"unicorn stopped at rip {self._state.rip:#x}: {self.library.error_text(error)} (error {error})"
            )

    def power_on(self) -> None:
        self._msrs.reset()
        offsets, u64 = self._offsets, self._state.u64
        for offset in (offsets.star, offsets.lstar, offsets.cstar, offsets.fmask, offsets.kernel_gs_base):
            u64[offset >> 3] = 0
        self._state.u32[at.HFLAGS2 >> 2] = at.HF2_GIF
        self._state.u32[offsets.old_exception >> 2] = 0xFFFFFFFF
        self._state.u32[offsets.exception_is_int >> 2] = 0
        self._requests[1] = 0

    def tsc_hz(self) -> Callable[[], int] | None:
        return self._tsc.hz

    def mapped_ram(self, slot: Slot, host: int) -> None:
        self._ram.append((slot.base, slot.size, self._ram_address(self.uc, host)))
        pages = max(address + size for _, size, address in self._ram) >> 12
        self._code_pages = mmap.mmap(-1, pages)
        self._table.code_pages = ctypes.addressof(ctypes.c_char.from_buffer(self._code_pages))

    def invalidate(self, gpa: int, length: int) -> None:
        if self._mapped is None:
            return
        self._stale.append((gpa, length))
        if threading.current_thread() is self._thread:
            self._drop_stale()
        else:
            self.poke()

    def _drop_stale(self) -> None:
        while self._stale:
            gpa, length = self._stale.pop()
            for base, size, address in self._ram:
                start, end = max(gpa, base), min(gpa + length, base + size)
                if start < end:
                    self._drop_code(self.uc, address + start - base, address + end - base)

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
            if code == _SHUTDOWN:
                self._exit = ShutdownExit(self._state.rip)
                self.library.stop(self.uc)
                return 0
            if code in _UNDEFINED:
                return self._fault(_UD)
            raise EngineError(f"unicorn: unexpected intercept {code:#x} at rip {self._state.rip:#x}")
        except BaseException as exc:
            self._fail(exc)
            return 0

    def _attend(self) -> int:
        """Stop if asked to; take an NMI or an interrupt; else see that the interrupt window is told."""
        if self._stale:
            self._drop_stale()
        if self._kicked or self._error is not None or self._closing:
            self._requests[1] &= _REQUEST_NMI
            self.library.stop(self.uc)
            return 0
        requests = self._requests[1] & _REQUEST_NMI  # the library takes it when no other NMI is in service
        if self._nmi_pending:
            self._nmi_pending = False
            requests |= _REQUEST_NMI
        u32, vector, controller = self._state.u32, None, self.vcpu.controller
        if controller is not None:
            open_ = u32[at.EFLAGS >> 2] & RFLAGS_IF and not u32[at.HFLAGS >> 2] & at.HF_INHIBIT_IRQ
            if requests and not u32[at.HFLAGS2 >> 2] & at.HF2_NMI:  # the NMI comes first
                open_ = False
            with self.machine.lock:
                if open_ and controller.pending():
                    vector = controller.acknowledge()
                if controller.pending():  # masked now, or behind the first: come back when the window opens
                    requests |= _REQUEST_VIRQ
        self._requests[1] = requests
        if requests:
            self._icount_high[0] = 0xFFFF
        return 0 if vector is None else _HARDWARE | vector

    def nmi_wakes(self) -> bool:
        return self._nmi_pending and not self._state.u32[at.HFLAGS2 >> 2] & at.HF2_NMI

    def _on_hlt(self) -> int:
        trap = self._skip(self._instruction()[1] + 1)
        self.halted = True
        self._exit = self.wait_halted(bool(self._state.u32[at.EFLAGS >> 2] & RFLAGS_IF))
        if self.halted:
            self.library.stop(self.uc)
            return 0
        return trap or self._attend()

    def _on_msr(self) -> int:
        u32, u64 = self._state.u32, self._state.u64
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
        u64, controller = self._state.u64, self.vcpu.controller
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

    def _instruction(self) -> tuple[bytes, int]:
        """The code at RIP and the number of its prefix bytes."""
        state = self._state
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
        state = self._state
        state.rip += length
        state.u32[at.HFLAGS >> 2] &= ~at.HF_INHIBIT_IRQ
        if state.u32[at.EFLAGS >> 2] & RFLAGS_TF:
            dr6 = self.library.read_register(self.uc, _REG_DR6)
            self.library.write_register(self.uc, _REG_DR6, dr6 | _DR6_BS)
            return self._fault(_DB)
        return 0

    def _fault(self, vector: int, error_code: int = 0) -> int:
        """Have the stub raise an exception, with what a fault in its delivery is judged by."""
        u32 = self._state.u32
        u32[self._offsets.error_code >> 2] = error_code
        u32[self._offsets.old_exception >> 2] = vector if vector == _GP else 0xFFFFFFFF
        return _FAULT | vector

    def _tsc_offset(self) -> int:
        return self._state.u64[self._offsets.tsc_offset >> 3]

    def _write_tsc(self, value: int) -> None:
        self._state.u64[self._offsets.tsc_offset >> 3] = value - self._stubs.rdtsc() & _MASK64


_MASK64: Final = (1 << 64) - 1
