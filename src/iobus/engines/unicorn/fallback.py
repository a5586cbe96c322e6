"""Running with the library's public API only: slower, less exact, and on any host.

The engine comes here where the library is not the one that native.py knows. Guest code runs in slices of
so many instructions (`emu_start`'s count) and is never stopped from outside, because such a stop may
repeat half an instruction. Between slices the engine looks for what is due: a kick, an NMI, an interrupt.
A count makes the library call its hooks before each instruction, and two things hang on that: where a
device has asked for attention in the middle of a slice, a hook stops it before the next instruction; and
a HLT, which ends a slice like a used-up count does, is told by a hook on the addresses where one was seen.

Exceptions, SYSCALL and SYSENTER come to hooks in Python (deliver.py has the gates), which edit the CPU's
state by saving it to a context, whose layout internals.py describes, and restoring that.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from iobus.cpu_registers import CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_LME, RFLAGS_IF, Registers, Segment
from iobus.engines.unicorn import internals as at
from iobus.engines.unicorn import library as uc_api
from iobus.engines.unicorn import syscalls
from iobus.engines.unicorn.cpu import UnicornCpu
from iobus.engines.unicorn.cpustate import CpuState
from iobus.engines.unicorn.deliver import GP, HAS_ERROR_CODE, NMI, UD, Event, TripleFault, deliver
from iobus.engines.unicorn.instance import Instance
from iobus.engines.unicorn.library import Library
from iobus.engines.unicorn.msrs import CLEARED, POWER_ON
from iobus.exits import EngineError, GuestFault, MmioExit, PioExit, ShutdownExit
from iobus.machine import Machine
from iobus.paging import translate
from iobus.vcpu import VCPU

SLICE: Final = 20_000
"""Instructions between two looks at what is due: some 0.5 ms."""
_STEPS, _STRIDE = 64, 1000
"""While something waits for the guest to take interrupts: so many looks an instruction apart, then a stride.

A guest that opens its interrupts for an instruction at a time is met there. Strides, of one or two times that
length, differ: a loop that always fits into them could slip through for ever.
"""

LOST: Final = (
    "Without them the guest runs several times slower; the interrupt controller's MSRs (IA32_APIC_BASE, x2APIC, "
    "the TSC deadline) and CR8 do nothing, no access to another MSR nor a bit of CR4 faults, and MSRs that do not "
    "exist read 0; "
    f"interrupts, NMIs, stops and code that other threads write come up to {SLICE} instructions late; the guest's "
    "TSC can be neither set nor told; user code may use every port, and no breakpoint on a port traps; CPUID does "
    "not offer SMAP; task gates in the IDT fault."
)
"""What the fallback cannot do, as the engine tells it."""

# In the state, behind what internals.py has: the exception that the interrupt hook is called for.
_ERROR_CODE: Final = 0x1508
_IS_INT: Final = 0x150C
_DR0: Final = 0x1518
_OLD_EXCEPTION: Final = 0x1578

_REG_RFLAGS, _REG_DR0, _REG_DR7 = 253, 66, 73
_DR7_AT_RESET, _DR7_ENABLED = 0x400, 0xFF
_EFER: Final = 0xC0000080
_CS: Final = at.SEGMENTS + 24

_HLT: Final = 0xF4
_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3") | frozenset(range(0x40, 0x50))
_LONGEST: Final = 15
"""The most bytes an instruction has."""
_END_HOOKS: Final = 64
"""How many ends of blocks are hooked before they are all forgotten."""

_OWN: Final = 1 << 45
"""Where code of our own runs; above the guest's physical address width."""
_OWN_CODE: Final = bytes.fromhex("eb 00 f4 0f 23 f8 f4")  # jmp $ + 2; hlt; mov dr7, rax; hlt
_DISARM: Final = _OWN + 3
_MASK64: Final = (1 << 64) - 1

_FLAT: Final = Registers(
    rax=_DR7_AT_RESET, cs=Segment(8, 0, 0xFFFFFFFF, 0xA09B), cr0=0x11, efer=EFER_LMA | EFER_LME,
)  # fmt: skip
"""64-bit mode without paging, which no real CPU has: what the library's CPU is made with, and code of our own needs."""


class FallbackInstance(Instance):
    """The library's CPU, with one vCPU in it for good."""

    current: FallbackCpu | None

    def __init__(self, library: Library, machine: Machine) -> None:
        super().__init__(library, machine)
        self.hook(uc_api.HOOK_INSN, self.port_in, instruction=uc_api.INSN_IN)
        self.hook(uc_api.HOOK_INSN, self.port_out, instruction=uc_api.INSN_OUT)

    def poke(self) -> None:
        if self.current is not None and self.runner.here():
            self.current.end_slice()

    def invalidate(self, gpa: int, length: int) -> None:
        if self.current is not None:
            self.current.written(gpa, length)

    def close(self) -> None:
        super().close()
        if self.current is not None:
            self.current.close()
            self.current = None


class FallbackCpu(UnicornCpu):
    """A vCPU that runs in slices. Raises `MismatchError` where even the context's layout is not known."""

    traps_msrs = False

    def __init__(self, instance: Instance, vcpu: VCPU) -> None:
        super().__init__(instance, vcpu)
        library = self.library
        at.check_context(library, self.uc)
        self._context = library.context(self.uc)
        self._state = CpuState(self._context.data[at.CONTEXT_HEADER :])
        self._check_state()
        self._running = False  # inside emu_start
        self._looks = 0  # in a row that have found something waiting
        self._code_pages: set[int] = set()  # physical page numbers of translated code
        self._stale = False  # some of them were written by software
        self._hlt_end: int | None = None  # the linear address behind a HLT, when one is about to run
        self._end_hooks: dict[int, int] = {}
        self._stop_hook: int | None = None
        self._at_end = uc_api.CODE_CB(self._on_block_end)
        self._at_stop = uc_api.CODE_CB(self._on_stop)
        instance.hook(uc_api.HOOK_INTR, uc_api.INTR_CB(self._on_exception))
        instance.hook(uc_api.HOOK_INSN_INVALID, uc_api.INVALID_CB(self._on_invalid))
        instance.hook(uc_api.HOOK_EDGE_GENERATED, uc_api.EDGE_CB(self._on_translated))
        instance.hook(uc_api.HOOK_INSN, uc_api.SYSCALL_CB(self._on_syscall), instruction=uc_api.INSN_SYSCALL)
        instance.hook(uc_api.HOOK_INSN, uc_api.SYSCALL_CB(self._on_sysenter), instruction=uc_api.INSN_SYSENTER)
        self._run_first()
        instance.take(self)

    def _check_state(self) -> None:
        """Compare, beside the registers that `check_context` knows, those around the exception's fields."""
        library, uc, u64 = self.library, self.uc, self._state.u64
        saved = {}
        for index in (0, 3, 6):
            saved[index] = library.read_register(uc, _REG_DR0 + index)
            library.write_register(uc, _REG_DR0 + index, 0x1111000 + index)
        self.state()
        found = [u64[(_DR0 >> 3) + index] & 0xFFFFFFFF for index in saved]
        for index, value in saved.items():
            library.write_register(uc, _REG_DR0 + index, value)
        if found != [0x1111000 + index for index in saved]:
            raise at.MismatchError("the debug registers are not where expected in the context")
        if u64[at.EFER >> 3] != library.read_msr(uc, _EFER):
            raise at.MismatchError("EFER is not where expected in the context")

    def _run_first(self) -> None:
        """Run two blocks of our own: the library tells of new blocks only after a first one came to its end.

        The hook stays, because with a second hook on code the library looks through its list of them at
        each instruction; with only the count's it calls that directly, and a later one is not seen.
        """
        page = mmap.mmap(-1, mmap.PAGESIZE)
        page[: len(_OWN_CODE)] = _OWN_CODE
        self._own = page  # the library holds only its address
        library, uc, last = self.library, self.uc, _OWN + 2
        library.map_ram(uc, _OWN, len(page), ctypes.addressof(ctypes.c_char.from_buffer(page)))
        library.add_hook(uc, uc_api.HOOK_CODE, self._at_end, last, within=(last, last))
        library.check(library.emu_start(uc, _OWN, SLICE), "running the first instructions")
        if self._hlt_end != last + 1:
            raise at.MismatchError("a hook on code is not called")

    # UnicornCpu's requirements.

    def state(self) -> CpuState:
        self._context.save()
        return self._state

    def put_state(self) -> None:
        self._context.restore()

    def rflags(self) -> int:
        return self.library.read_register(self.uc, _REG_RFLAGS) | 2

    def unclaimed(self, exit: MmioExit | PioExit) -> int:
        value = super().unclaimed(exit)
        if self.runner.attention or self._stale:
            self.end_slice()
        return value

    def enter(self) -> None:
        while not self.runner.attention:
            count = self._attend()
            if self._exit is None:
                self._run(count)
            if self._exit is not None or self.halted:
                return

    def power_on(self) -> None:
        if self.library.read_register(self.uc, _REG_DR7) & _DR7_ENABLED:
            self._disarm()
        # Of those that the library does not keep it ignores the write.
        for msr, value in {**dict.fromkeys(CLEARED, 0), **POWER_ON}.items():
            self.library.write_msr(self.uc, msr, value)
        self.library.reset_units(self.uc)
        state = self.state()
        state.u32[at.HFLAGS2 >> 2] = at.HF2_GIF
        self._exception_taken()
        self.put_state()

    def _disarm(self) -> None:
        """Take the guest's breakpoints out of the library's CPU: writing the register there does not, a MOV does."""
        self.state().set(_FLAT, running=False)
        self.put_state()
        self.flush()
        self.library.check(self.library.emu_start(self.uc, _DISARM, SLICE), "disarming the breakpoints")

    def written(self, gpa: int, length: int) -> None:
        """Software wrote guest memory. From any thread."""
        first, last = gpa >> 12, gpa + length - 1 >> 12
        pages = self._code_pages
        if last - first < len(pages):
            hit = any(page in pages for page in range(first, last + 1))
        else:
            hit = any(first <= page <= last for page in tuple(pages))
        if hit:
            self._stale = True
            self.instance.poke()

    def close(self) -> None:
        """Free what the library does not free with its instance."""
        self._context.close()

    def flush(self) -> None:
        self.library.flush_tlb(self.uc)

    # Slices.

    def _run(self, count: int) -> None:
        library, uc = self.library, self.uc
        if self._stale:
            self._stale = False
            self._forget_code()
        self._hlt_end = None
        self._running = True
        try:
            error = library.emu_start(uc, self.state().rip, count)
        finally:
            self._running = False
        if self._stop_hook is not None:
            library.remove_hook(uc, self._stop_hook)
            self._stop_hook = None
        state = self.state()
        if error and self._exit is None and not self._errors:
            raise EngineError(f"unicorn stopped at rip {state.rip:#x}: {library.error_text(error)} (error {error})")
        if self._hlt_end is not None and self._hlt_end == _linear(state):
            self.halted = self._interrupted = True
        if len(self._end_hooks) > _END_HOOKS:
            for hook in self._end_hooks.values():
                library.remove_hook(uc, hook)
            self._end_hooks.clear()
            self._forget_code()  # each HLT that is translated again is hooked again

    def _forget_code(self) -> None:
        self._code_pages.clear()
        self.library.flush_code(self.uc)

    def end_slice(self) -> None:
        """Stop before the next instruction. On the vCPU's thread, in a callback of the library."""
        if self._running and self._stop_hook is None:
            self._stop_hook = self.library.add_hook(self.uc, uc_api.HOOK_CODE, self._at_stop)

    def _attend(self) -> int:
        """Deliver an NMI or an interrupt that is due; return how many instructions to run until the next look."""
        state, controller = self.state(), self.vcpu.controller
        if state.u32[at.HFLAGS >> 2] & at.HF_INHIBIT_IRQ and (self._nmis or controller is not None):
            return 1
        if not self._nmis:
            pass
        elif state.u32[at.HFLAGS2 >> 2] & at.HF2_NMI:  # beside the one in service there can be one
            if len(self._nmis) > 1:
                self._nmis.popleft()
        else:
            self._nmis.popleft()
            state.u32[at.HFLAGS2 >> 2] |= at.HF2_NMI  # IRET clears it
            self._deliver(Event(NMI, exception=False))
        waiting, vector = bool(self._nmis), None
        if controller is not None and self._exit is None:
            interruptible = self.rflags() & RFLAGS_IF
            with self.machine.lock:
                if interruptible and controller.pending():
                    vector = controller.acknowledge()
                waiting |= controller.pending()
        if vector is not None:
            self._deliver(Event(vector, exception=False))
        self._looks = self._looks + 1 if waiting else 0
        if not waiting:
            return SLICE
        return 1 if self._looks % (_STEPS + 1) else _STRIDE + self._looks % _STRIDE

    def nmi_wakes(self) -> bool:
        return bool(self._nmis) and not self.state().u32[at.HFLAGS2 >> 2] & at.HF2_NMI

    def _deliver(self, event: Event) -> None:
        """Enter a handler, from what `state()` was last filled with."""
        state, running = self._state, self._running
        try:
            flags = deliver(self.vcpu, state, self.rflags(), event)
        except TripleFault:
            self._exit = ShutdownExit(state.rip)
            if running:
                self.library.stop(self.uc)
        else:
            state.set_flags(flags, running=running)
            state.update_hflags()
        self._exception_taken()
        self.put_state()

    def _exception_taken(self) -> None:
        """Leave no trace of an exception: the library would make the next one a double fault."""
        self._state.u32[_IS_INT >> 2] = 0
        self._state.u32[_OLD_EXCEPTION >> 2] = 0xFFFFFFFF

    # Hooks. Where the library calls them inside an instruction, they do not stop it.

    def _on_exception(self, _: int, vector: int, __: int) -> None:
        try:
            self._hlt_end = None
            u32 = self.state().u32
            if vector > 0xFF:
                raise EngineError(f"unicorn: unexpected exception {vector:#x} at rip {self._state.rip:#x}")
            if u32[_IS_INT >> 2]:
                self._deliver(Event(vector, software=True, start=self._start_of_int(vector)))
            else:
                self._deliver(Event(vector, u32[_ERROR_CODE >> 2] if vector in HAS_ERROR_CODE else None))
        except BaseException as exc:
            self.fail(exc)

    def _start_of_int(self, vector: int) -> int:
        """Where the INT n, INT3 or INTO in front of RIP starts."""
        linear, mask = _linear(self._state), _mask(self._state)
        short = {3: b"\xcc", 4: b"\xce"}.get(vector)
        length = 1 if short == self.library.read_code(self.uc, linear - 1 & mask, 1) else 2
        return self._state.rip - length & mask

    def _on_invalid(self, _: int, __: int) -> bool:
        try:
            self.state()
            self._deliver(Event(UD))
        except BaseException as exc:
            self.fail(exc)
        return True

    def _on_syscall(self, _: int, __: int) -> None:
        try:
            self._enter_kernel(syscalls.syscall(self.state(), self.rflags(), self._read_msr), Event(UD))
        except BaseException as exc:
            self.fail(exc)

    def _on_sysenter(self, _: int, __: int) -> None:
        try:
            self._enter_kernel(syscalls.sysenter(self.state(), self.rflags(), self._read_msr), Event(GP, 0))
        except BaseException as exc:
            self.fail(exc)

    def _read_msr(self, index: int) -> int:
        return self.library.read_msr(self.uc, index)

    def _enter_kernel(self, flags: int | None, fault: Event) -> None:
        """End a system call with the new RFLAGS, or with its fault; the library steps over it either way."""
        state = self._state
        if flags is not None:
            state.set_flags(flags, running=True)
            state.update_hflags()
        else:
            self._deliver(fault)
            state.rip = state.rip - syscalls.LENGTH & _MASK64
        self.put_state()

    def _on_translated(self, _: int, block: int, __: int, ___: int) -> None:
        """A block was translated: note its pages, see to it that stores there are noticed, look for a HLT."""
        if not self._running:  # a block of our own
            return
        try:
            pc, size = ctypes.c_uint64.from_address(block).value, ctypes.c_uint16.from_address(block + 10).value
            # A store through another mapping of the page is noticed only when its TLB entry is made anew.
            self.library.flush_tlb(self.uc)
            paging, memory = self.state().paging(), self.machine.memory
            # The CPU has fetched this code: only the address is asked for.
            paging = paging._replace(cpl=0, cr4=paging.cr4 & ~(CR4_SMAP | CR4_SMEP))
            last = pc + max(size, 1) - 1
            gpa = translate(memory, paging, last)
            self._code_pages.add(gpa >> 12)
            if (last ^ pc) >> 12:
                self._code_pages.add(translate(memory, paging, pc) >> 12)
            if memory.load(gpa, 1) == _HLT:
                self._hook_end(last)
        except GuestFault:
            pass  # the page tables have changed under the code that runs: its pages were noted before
        except BaseException as exc:
            self.fail(exc)

    def _hook_end(self, last: int) -> None:
        """Have `_on_block_end` called for the instructions that may be the one that ends at `last`."""
        if last not in self._end_hooks:
            within = max(last - _LONGEST + 1, 0), last
            self._end_hooks[last] = self.library.add_hook(self.uc, uc_api.HOOK_CODE, self._at_end, last, within=within)

    def _on_block_end(self, _: int, address: int, size: int, last: int) -> None:
        """An instruction near a block's end is about to run: see whether it is a HLT that ends there."""
        try:
            if address + size - 1 != last:
                return
            code = self.library.read_code(self.uc, address, size)
            if code[-1] == _HLT and _PREFIXES.issuperset(code[:-1]):
                self._hlt_end = last + 1
            elif last in self._end_hooks:
                self.library.remove_hook(self.uc, self._end_hooks.pop(last))
        except BaseException as exc:
            self.fail(exc)

    def _on_stop(self, _: int, __: int, ___: int, ____: int) -> None:
        self.library.stop(self.uc)


def _mask(state: CpuState) -> int:
    """The width of linear addresses and of RIP."""
    return _MASK64 if state.u64[at.EFER >> 3] & EFER_LMA else 0xFFFFFFFF


def _linear(state: CpuState) -> int:
    """The linear address of RIP."""
    return state.rip + state.u64[_CS + 8 >> 3] & _mask(state)
