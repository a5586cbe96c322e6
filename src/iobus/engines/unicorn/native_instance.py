"""An instance of the library set up for guest-mode intercepts, and how vCPUs change places in its CPU.

Ground of native.py, which says what the intercepts are. Here is what all vCPUs share: the hooks in machine
code, the intercepts' page, which pages of RAM hold translated code. A vCPU that is not in the library's
CPU is a copy of the CPU's state: as much of it as the library's own contexts save. Translated code serves
all of them, for it does not depend on the state; cached address translations do, and are dropped.

`NativeInstance` refuses a library it does not know (`MismatchError`).
"""

from __future__ import annotations

import ctypes
import mmap
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from iobus.engines.unicorn import internals as at
from iobus.engines.unicorn import library as uc_api
from iobus.engines.unicorn.cpustate import CpuState
from iobus.engines.unicorn.instance import Instance
from iobus.engines.unicorn.library import Library
from iobus.engines.unicorn.msrs import ADDRESSES, UNTRAPPED
from iobus.engines.unicorn.stubs import Stubs, Table
from iobus.engines.unicorn.tsc import HostTsc
from iobus.machine import Machine

if TYPE_CHECKING:
    from iobus.engines.unicorn.native import NativeCpu

# interrupt_request, by bytes: each byte has one writer, so that no read-modify-write can lose a bit.
_REQUEST_SMI: Final = 0x40  # byte 0: any thread
REQUEST_VIRQ: Final = 0x01  # byte 1: the engine's thread
REQUEST_NMI: Final = 0x02

_VMCB: Final = 1 << 45
"""Above the guest's physical address width: no page table entry of the guest can name it."""
_VMCB_MSRPM_BASE: Final = 0x48
_MSRPM: Final = 0x1000


def _permission(msr: int) -> tuple[int, int]:
    """Where an MSR's two bits are in the permission map: the byte, the lower bit (reads; writes is the next)."""
    bit = (msr if msr < 0x2000 else msr - 0xC0000000 + 0x2000) * 2
    return bit // 8, bit % 8


_DR7_ENABLED: Final = 0xFF
_BREAKPOINTS: Final = 32
"""The bytes behind DR7: pointers to what it has armed in the library's CPU, which are no vCPU's state."""


class NativeInstance(Instance):
    """The library's CPU, which intercepts CR8 and `intercepts`: bit n stands for the SVM exit code 0x60 + n."""

    current: NativeCpu | None

    def __init__(self, library: Library, machine: Machine, intercepts: int) -> None:
        super().__init__(library, machine)
        offsets = at.locate(library)
        self.offsets: Final = offsets
        self._cpu, self.env = cpu, env = at.find_env(library, self.uc, offsets)
        size = at.check_context(library, self.uc)
        self._view = memoryview((ctypes.c_ubyte * size).from_address(env)).cast("B")
        self.live: Final = CpuState(self._view)
        """The state of the vCPU that is `current`."""
        self.requests = memoryview((ctypes.c_ubyte * 4).from_address(cpu + offsets.interrupt_request)).cast("B")
        icount = memoryview((ctypes.c_uint16 * 1).from_address(cpu + offsets.icount_high))
        self.icount_high = icount.cast("B").cast("H")
        ctypes.c_ubyte.from_address(self.uc + offsets.no_exit_request).value = 1
        self.read_eflags = library.function("helper_read_eflags_x86_64", ctypes.c_uint64, ctypes.c_void_p)
        self._flush = library.function("tlb_flush_x86_64", None, ctypes.c_void_p)
        self.update_cr4: Final = library.function("cpu_x86_update_cr4_x86_64", None, ctypes.c_void_p, ctypes.c_uint32)
        self._arm = library.function("cpu_x86_update_dr7_x86_64", None, ctypes.c_void_p, ctypes.c_uint32)
        self._ram_address = library.function(
            "qemu_ram_addr_from_host_x86_64", ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p
        )
        self._drop_code = library.function(
            "tb_invalidate_phys_range_x86_64", None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64
        )
        self._ram: list[tuple[int, int, int]] = []  # gpa, size, the library's own address
        self.stale: list[tuple[int, int]] = []
        """Guest memory, as (gpa, length), written from other threads, whose code is not yet dropped."""
        self._install(intercepts)
        self.tsc: Final = HostTsc(self._stubs.rdtsc, machine.clock.now)
        self.library.reset_units(self.uc)
        self._pristine: Final = self.new_state()

    def new_state(self) -> CpuState:
        """Return a copy of the state in the library's CPU: at first, what a CPU has at power-on beside `Registers`."""
        return CpuState(memoryview(bytearray(self._view)))

    def _install(self, intercepts: int) -> None:
        cpu, env, offsets, library, u32, u64 = (
            self._cpu, self.env, self.offsets, self.library, self.live.u32, self.live.u64,
        )  # fmt: skip
        page = mmap.mmap(-1, 0x4000)
        page[_VMCB_MSRPM_BASE : _VMCB_MSRPM_BASE + 8] = (_VMCB + _MSRPM).to_bytes(8, "little")
        permissions = bytearray(b"\xff" * 0x3000)
        for msr in UNTRAPPED:
            byte, shift = _permission(msr)
            permissions[byte] &= ~((1 if msr in ADDRESSES else 3) << shift)
        page[_MSRPM:] = bytes(permissions)
        self._vmcb = page  # the library holds only its address
        library.map_ram(self.uc, _VMCB, len(page), ctypes.addressof(ctypes.c_char.from_buffer(page)))
        u64[offsets.vm_vmcb >> 3] = _VMCB
        u64[offsets.intercept >> 3] = intercepts
        for offset in (offsets.intercept_cr_read, offsets.intercept_cr_write):
            ctypes.c_uint16.from_address(env + offset).value = 1 << 8
        ctypes.c_uint16.from_address(env + offsets.intercept_cr_write).value |= 1 << 4
        u32[at.HFLAGS >> 2] |= at.HF_GUEST
        u32[at.HFLAGS2 >> 2] = at.HF2_GIF
        u32[offsets.old_exception >> 2] = 0xFFFFFFFF
        u32[offsets.exception_is_int >> 2] = 0

        function = partial(at.address_of, library)

        def address_of(callback: Any) -> int | None:
            return ctypes.cast(callback, ctypes.c_void_p).value

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
            port_in=address_of(self.port_in), port_out=address_of(self.port_out),
            check_iob=function("helper_check_iob"), check_iow=function("helper_check_iow"),
            check_iol=function("helper_check_iol"), loop_exit=function("cpu_loop_exit_noexc"),
            **vars(at.find_blocks(library, self.uc, offsets)),
        )  # fmt: skip
        self._stubs = stubs = Stubs(table)
        address = ctypes.addressof(table)
        self.hook(uc_api.HOOK_INTR, stubs.interrupt, address)
        self.hook(uc_api.HOOK_INSN_INVALID, stubs.invalid, address)
        self.hook(uc_api.HOOK_EDGE_GENERATED, stubs.edge, address)
        self.hook(uc_api.HOOK_INSN, stubs.port_in, address, uc_api.INSN_IN)
        self.hook(uc_api.HOOK_INSN, stubs.port_out, address, uc_api.INSN_OUT)
        self.hook(uc_api.HOOK_INSN, stubs.syscall, address, uc_api.INSN_SYSCALL)
        self.hook(uc_api.HOOK_INSN, uc_api.SYSCALL_CB(self._on_sysenter), instruction=uc_api.INSN_SYSENTER)
        fill = ctypes.c_uint64.from_address(
            ctypes.c_uint64.from_address(env + offsets.cpu_class).value + offsets.class_tlb_fill
        )
        if fill.value != table.tlb_fill:
            raise at.MismatchError("the function that fills the TLB is not where expected")
        fill.value = stubs.fill

    def _on_sysenter(self, _: int, __: int) -> None:
        assert self.current is not None
        try:
            self.current.on_sysenter()
        except BaseException as exc:
            self.current.fail(exc)

    def write_msr(self, index: int, value: int) -> None:
        """Write an MSR of `ADDRESSES`, past its trap."""
        byte, shift = _permission(index)
        byte += _MSRPM
        before = self._vmcb[byte]
        self._vmcb[byte] = before & ~(2 << shift)
        try:
            self.library.write_msr(self.uc, index, value)
        finally:
            self._vmcb[byte] = before

    def after_out(self) -> None:
        if self.requests[0]:  # this access has made a request, or another thread has just then
            assert self.current is not None
            self._table.leave = self.current.length_of_out()

    # vCPUs.

    def put_in(self, cpu: NativeCpu) -> None:
        """Have `cpu`'s state in the library's CPU; the one whose was there keeps it as a copy."""
        if self.current is cpu:
            return
        self.take_out()
        self._load(cpu.copy)
        self.requests[1] = cpu.requested
        self._table.intercept = cpu.intercept
        self._flush(self._cpu)
        self.take(cpu)

    def take_out(self) -> None:
        """Have no vCPU's state in the library's CPU."""
        cpu = self.current
        if cpu is not None:
            cpu.copy.view[:] = self._view
            cpu.requested = self.requests[1] & REQUEST_NMI
            self.current = None

    def power_on(self, cpu: NativeCpu) -> None:
        """Give `cpu` the state it has at power-on."""
        if self.current is cpu:
            self._load(self._pristine)
            self.requests[1] = 0
        else:
            cpu.copy.view[:] = self._pristine.view
            cpu.requested = 0

    def _load(self, state: CpuState) -> None:
        """Replace the state in the library's CPU, and the breakpoints that it has armed by those of `state`."""
        live, view, dr7 = self.live, self._view, self.offsets.dr7
        before, after = live.u32[dr7 >> 2], state.u32[dr7 >> 2]
        if not (before | after) & _DR7_ENABLED:
            view[:] = state.view
            return
        self._arm(self.env, before & ~_DR7_ENABLED)
        pointers = bytes(view[dr7 + 8 : dr7 + 8 + _BREAKPOINTS])
        view[:] = state.view
        view[dr7 + 8 : dr7 + 8 + _BREAKPOINTS] = pointers
        live.u32[dr7 >> 2] &= ~_DR7_ENABLED
        self._arm(self.env, after)

    def poke(self) -> None:
        self.requests[0] = _REQUEST_SMI
        self.icount_high[0] = 0xFFFF

    # Memory.

    def mapped_ram(self, gpa: int, size: int, host: int) -> None:
        self._ram.append((gpa, size, self._ram_address(self.uc, host)))
        pages = max(address + size for _, size, address in self._ram) >> 12
        self._code_pages = mmap.mmap(-1, pages)
        self._table.code_pages = ctypes.addressof(ctypes.c_char.from_buffer(self._code_pages))

    def remapped(self, pieces: list[tuple[int, int, int]]) -> None:
        self._ram.clear()
        for piece in pieces:
            self.mapped_ram(*piece)
        super().remapped(pieces)

    def invalidate(self, gpa: int, length: int) -> None:
        if not self.mapped:
            return
        self.stale.append((gpa, length))
        if self.runner.here():
            self.drop_stale()
        else:
            self.poke()

    def drop_stale(self) -> None:
        """Drop the translations of code in the memory that is `stale`."""
        while self.stale:
            gpa, length = self.stale.pop()
            for base, size, address in self._ram:
                start, end = max(gpa, base), min(gpa + length, base + size)
                if start < end:
                    self._drop_code(self.uc, address + start - base, address + end - base)
