"""The private binding to libunicorn: just what the engine calls, by ctypes.

Why not the official binding: it swallows exceptions raised in callbacks and costs several times as
much for each. `uc_emu_start` goes through `CDLL`, which lets other Python threads run meanwhile; the
short calls go through `PyDLL`, which keeps the interpreter's lock and is faster.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from ctypes import CFUNCTYPE, byref, c_bool, c_int, c_size_t, c_ubyte, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Final

from iobus.exits import EngineError

VERSION: Final = (2, 1, 4)
"""The one version whose behaviour the engine knows."""

ARCH_X86: Final = 4
MODE_64: Final = 8
PROT_ALL: Final = 7
_PROT_READ_EXEC: Final = 5
_PROT_EXEC: Final = 4

HOOK_INTR: Final = 1 << 0
HOOK_INSN: Final = 1 << 1
HOOK_CODE: Final = 1 << 2
HOOK_WRITE_PROTECTED: Final = 1 << 8
HOOK_INSN_INVALID: Final = 1 << 14
HOOK_EDGE_GENERATED: Final = 1 << 15

INSN_IN: Final = 218
INSN_OUT: Final = 500
INSN_SYSCALL: Final = 699
INSN_SYSENTER: Final = 700
INSN_CPUID: Final = 113

CPU_SKYLAKE_CLIENT: Final = 21
"""A model whose features are those the library can translate, and all of them."""

_CTL_USE_EXITS: Final = 4
_CTL_CPU_MODEL: Final = 7
_CTL_TB_FLUSH: Final = 10
_CTL_TLB_FLUSH: Final = 11
_CTL_WRITE: Final = 1

INTR_CB = CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
INTERCEPT_CB = CFUNCTYPE(c_int, c_void_p, c_uint32, c_void_p)
CODE_CB = CFUNCTYPE(None, c_void_p, c_uint64, c_uint32, c_void_p)
INVALID_CB = CFUNCTYPE(c_bool, c_void_p, c_void_p)
SYSCALL_CB = CFUNCTYPE(None, c_void_p, c_void_p)
CPUID_CB = CFUNCTYPE(c_int, c_void_p, c_void_p)
IN_CB = CFUNCTYPE(c_uint32, c_void_p, c_uint32, c_int, c_void_p)
OUT_CB = CFUNCTYPE(None, c_void_p, c_uint32, c_int, c_uint32, c_void_p)
WRITE_PROTECTED_CB = CFUNCTYPE(c_bool, c_void_p, c_int, c_uint64, c_int, c_uint64, c_void_p)
EDGE_CB = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_void_p)
# The busiest two: of the pointer in front only a byte is taken, for which Python makes no new number, and the one
# behind not at all. In the calling conventions of 64-bit hosts the caller removes the arguments.
MMIO_READ_CB = CFUNCTYPE(c_uint64, c_ubyte, c_uint64, c_uint32)
MMIO_WRITE_CB = CFUNCTYPE(None, c_ubyte, c_uint64, c_uint32, c_uint64)


_REG_MSR: Final = 248
_REG_DR0, _REG_DR6, _REG_DR7, _REG_FPSW, _REG_FPCW, _REG_FPTAG, _REG_MXCSR = 66, 72, 73, 31, 246, 247, 249
_AT_RESET: Final = {
    **dict.fromkeys(range(_REG_DR0, _REG_DR0 + 4), 0),
    _REG_DR6: 0xFFFF0FF0,
    _REG_DR7: 0x400,
    _REG_FPCW: 0x40,
    _REG_FPSW: 0,
    _REG_FPTAG: 0x5555,
    _REG_MXCSR: 0x1F80,
}


class _Msr(ctypes.Structure):
    _fields_ = [("index", c_uint32), ("value", c_uint64)]


def library_path() -> Path:
    """Return the path of the library that the `unicorn` distribution carries. Raises `EngineError`."""
    spec = importlib.util.find_spec("unicorn")
    if spec is None or spec.origin is None:
        raise EngineError("the package 'unicorn' is not installed: pip install unicorn==2.1.4")
    folder = Path(spec.origin).parent / "lib"
    name = {"darwin": "libunicorn.2.dylib", "win32": "unicorn.dll"}.get(sys.platform, "libunicorn.so.2")
    path = folder / name
    if not path.exists():
        raise EngineError(f"the package 'unicorn' has no {name} in {folder}: install it again")
    return path


class Library:
    """The loaded library. Its methods raise `EngineError` with the library's own error text."""

    def __init__(self) -> None:
        path = str(library_path())
        self.path = path
        self._short: Any = ctypes.PyDLL(path)
        self._long: Any = ctypes.CDLL(path)
        self._short.uc_strerror.restype = ctypes.c_char_p
        major, minor = c_uint32(), c_uint32()
        packed = self._short.uc_version(byref(major), byref(minor))
        self.version = (packed >> 24 & 0xFF, packed >> 16 & 0xFF, packed >> 8 & 0xFF)
        self._start = self._long.uc_emu_start
        self._start.argtypes = [c_void_p, c_uint64, c_uint64, c_uint64, c_size_t]
        for name, arguments in {
            "uc_close": [c_void_p],
            "uc_emu_stop": [c_void_p],
            "uc_reg_read": [c_void_p, c_int, c_void_p],
            "uc_reg_write": [c_void_p, c_int, c_void_p],
            "uc_hook_del": [c_void_p, c_size_t],
            "uc_mem_map": [c_void_p, c_uint64, c_size_t, c_uint32],
            "uc_mem_map_ptr": [c_void_p, c_uint64, c_size_t, c_uint32, c_void_p],
            "uc_mem_protect": [c_void_p, c_uint64, c_size_t, c_uint32],
            "uc_mem_unmap": [c_void_p, c_uint64, c_size_t],
            "uc_mmio_map": [c_void_p, c_uint64, c_size_t, c_void_p, c_void_p, c_void_p, c_void_p],
            "uc_vmem_read": [c_void_p, c_uint64, c_uint32, c_void_p, c_size_t],
            "uc_context_alloc": [c_void_p, c_void_p],
            "uc_context_save": [c_void_p, c_void_p],
            "uc_context_restore": [c_void_p, c_void_p],
            "uc_context_free": [c_void_p],
        }.items():
            getattr(self._short, name).argtypes = arguments
        self._short.uc_context_size.argtypes = [c_void_p]
        self._short.uc_context_size.restype = c_size_t

    def emu_start(self, uc: int, rip: int, count: int = 0) -> int:
        """Run from `rip` until a stop (after `count` instructions, where given); return the error."""
        error: int = self._start(uc, rip, 0, 0, count)
        return error

    def error_text(self, error: int) -> str:
        """Return the library's words for an error number."""
        return str(self._short.uc_strerror(error).decode())

    def check(self, error: int, what: str) -> None:
        """Raise `EngineError` unless `error` is 0."""
        if error:
            raise EngineError(f"unicorn: {what}: {self.error_text(error)}")

    def open(self) -> int:
        """Return a new x86-64 instance's handle."""
        uc = c_void_p()
        self.check(self._short.uc_open(ARCH_X86, MODE_64, byref(uc)), "uc_open")
        assert uc.value is not None
        self._control(uc.value, _CTL_CPU_MODEL, CPU_SKYLAKE_CLIENT)
        # A list of addresses to stop at, which stays empty, in place of `emu_start`'s `until`: that is an
        # address in any case, and 0 is one too, at which code could not run.
        self._control(uc.value, _CTL_USE_EXITS, 1)
        self.flush_tlb(uc.value)  # the CPU is made by the first call that needs it; before, its pointer is null
        return uc.value

    def close(self, uc: int) -> None:
        """Free an instance."""
        self._short.uc_close(uc)

    def stop(self, uc: int) -> None:
        """Make `emu_start` return at the next block. Lost when it is not running."""
        self._short.uc_emu_stop(uc)

    def map_ram(self, uc: int, base: int, size: int, host: int) -> None:
        """Map host memory as guest RAM."""
        self.check(self._short.uc_mem_map_ptr(uc, base, size, PROT_ALL, host), f"mapping RAM at {base:#x}")

    def protect(self, uc: int, base: int, size: int, readonly: bool) -> None:
        """Let writes to mapped RAM come to `HOOK_WRITE_PROTECTED`, which is to answer true, or to the RAM again."""
        access = _PROT_READ_EXEC if readonly else PROT_ALL
        self.check(self._short.uc_mem_protect(uc, base, size, access), f"protecting RAM at {base:#x}")

    def unmap(self, uc: int, base: int, size: int) -> None:
        """Take away what is mapped there: a part of mapped RAM leaves the rest, each piece with its host memory."""
        self.check(self._short.uc_mem_unmap(uc, base, size), f"unmapping {base:#x}")

    def map_scratch(self, uc: int, base: int, size: int) -> None:
        """Map memory of the library's own."""
        self.check(self._short.uc_mem_map(uc, base, size, PROT_ALL), f"mapping memory at {base:#x}")

    def map_io(self, uc: int, base: int, size: int, read: Any, write: Any) -> None:
        """Map a range whose every access calls `read(uc, offset, size, _)` or `write(...)`."""
        error = self._short.uc_mmio_map(uc, base, size, read, None, write, None)
        self.check(error, f"mapping I/O at {base:#x}")

    def add_hook(
        self,
        uc: int,
        kind: int,
        callback: Any,
        user_data: int | None = None,
        instruction: int | None = None,
        within: tuple[int, int] = (1, 0),
    ) -> int:
        """Install a hook, for all addresses or those from `within[0]` to `within[1]`; return its handle.

        The caller keeps `callback` alive.
        """
        handle = c_size_t()
        add = self._short.uc_hook_add
        arguments = [
            c_void_p(uc), byref(handle), c_int(kind), ctypes.cast(callback, c_void_p), c_void_p(user_data),
            *map(c_uint64, within),
        ]  # fmt: skip
        if instruction is not None:
            arguments.append(c_int(instruction))
        self.check(add(*arguments), f"installing hook {kind:#x}")
        return handle.value

    def remove_hook(self, uc: int, handle: int) -> None:
        """Remove what `add_hook` installed."""
        self.check(self._short.uc_hook_del(uc, handle), "removing a hook")

    def flush_tlb(self, uc: int) -> None:
        """Drop all cached address translations."""
        self._control(uc, _CTL_TLB_FLUSH)

    def flush_code(self, uc: int) -> None:
        """Drop all translated code."""
        self._control(uc, _CTL_TB_FLUSH)

    def read_register(self, uc: int, number: int) -> int:
        """Return a register of up to 64 bits by its UC_X86_REG_ number."""
        value = c_uint64()
        self.check(self._short.uc_reg_read(uc, number, byref(value)), f"reading register {number}")
        return value.value

    def write_register(self, uc: int, number: int, value: int) -> None:
        """Set a register of up to 64 bits."""
        self.check(self._short.uc_reg_write(uc, number, byref(c_uint64(value))), f"writing register {number}")

    def read_msr(self, uc: int, index: int) -> int:
        """Return a model-specific register. Not where the guest's accesses to it are intercepted."""
        msr = _Msr(index)
        self.check(self._short.uc_reg_read(uc, _REG_MSR, byref(msr)), f"reading MSR {index:#x}")
        return int(msr.value)

    def write_msr(self, uc: int, index: int, value: int) -> None:
        """Set a model-specific register; as `read_msr`."""
        self.check(self._short.uc_reg_write(uc, _REG_MSR, byref(_Msr(index, value))), f"writing MSR {index:#x}")

    def reset_units(self, uc: int) -> None:
        """Set the debug, x87 and SSE control registers as power-on does (SDM vol. 3A, table 10-1)."""
        for number, value in _AT_RESET.items():
            self.write_register(uc, number, value)

    def read_code(self, uc: int, linear: int, length: int) -> bytes:
        """Return up to `length` bytes of code at a linear address, through the guest's page tables."""
        buffer = ctypes.create_string_buffer(length)
        for count in (length, min(length, 4096 - linear % 4096)):  # the next page may not be there
            if self._short.uc_vmem_read(uc, linear, _PROT_EXEC, buffer, count) == 0:
                return buffer.raw[:count]
        raise EngineError(f"unicorn: no code can be read at {linear:#x}")

    def context(self, uc: int) -> Context:
        """Return a buffer for the CPU's whole state."""
        handle = c_void_p()
        self.check(self._short.uc_context_alloc(uc, byref(handle)), "uc_context_alloc")
        assert handle.value is not None
        return Context(self, uc, handle.value, self._short.uc_context_size(uc))

    def symbol(self, name: str) -> int | None:
        """Return the address of an exported function, or None."""
        try:
            return ctypes.cast(getattr(self._short, name), c_void_p).value
        except AttributeError:
            return None

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        """Return an exported internal function, called with the interpreter's lock held."""
        return ctypes.PYFUNCTYPE(result, *arguments)((name, self._short))

    def _control(self, uc: int, control: int, *arguments: int) -> None:
        word = control | len(arguments) << 26 | _CTL_WRITE << 30
        self.check(self._short.uc_ctl(c_void_p(uc), c_int(word), *map(c_int, arguments)), f"uc_ctl {control}")


class Context:
    """A saved CPU state: `save()` fills `data`, `restore()` puts `data` back."""

    def __init__(self, library: Library, uc: int, handle: int, size: int) -> None:
        self._library, self._uc, self._handle = library, uc, handle
        self.data = memoryview((ctypes.c_char * size).from_address(handle)).cast("B")
        """The library's opaque blob: a header, then the CPU's state; see internals.py."""

    def save(self) -> None:
        self._library.check(self._library._short.uc_context_save(self._uc, self._handle), "uc_context_save")

    def restore(self) -> None:
        self._library.check(self._library._short.uc_context_restore(self._uc, self._handle), "uc_context_restore")

    def close(self) -> None:
        self._library._short.uc_context_free(self._handle)
