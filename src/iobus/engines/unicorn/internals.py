"""Where the library keeps the CPU's state, decoded from its own code and checked against its public API.

The fast way of this engine (native.py) reads and writes fields of the library's private structures.
Their offsets are nowhere promised, so none is taken on trust: `locate` decodes each from the machine
code of exported functions (x86-64), and `find_env` compares what is found there with what the public
register calls say. A live guest (selfcheck.py) then shows that all of it acts as expected. If any step
fails, the engine uses the public API only (fallback.py).

Offsets are in bytes: those of `CPU` from the library's CPUState, those of `ENV` from its CPUX86State.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import partial
from typing import Final

from iobus.engines.unicorn.library import Library

# The head of CPUX86State: the same in the public context blob, behind its header.
REGS: Final = 0
RIP: Final = 128
EFLAGS: Final = 136
CC_SRC: Final = 152
CC_OP: Final = 168
CC_OP_EFLAGS: Final = 1
DF: Final = 172
HFLAGS: Final = 176
HFLAGS2: Final = 180
SEGMENTS: Final = 184
"""ES, CS, SS, DS, FS, GS: 24 bytes each: u32 selector, u64 base at +8, u32 limit, u32 flags."""
LDT: Final = 328
TR: Final = 352
GDT: Final = 376
IDT: Final = 400
CR: Final = 424
"""CR0-CR4, 8 bytes each."""
EFER: Final = 0x250

CONTEXT_HEADER: Final = 40
"""Bytes before the state in the public context blob."""

HF_INHIBIT_IRQ: Final = 1 << 3
HF_GUEST: Final = 1 << 21
HF2_GIF: Final = 1 << 0
HF2_NMI: Final = 1 << 2


class MismatchError(Exception):
    """The library is not what this file knows: the text names what differs."""


@dataclass(frozen=True)
class Offsets:
    """The private offsets, in bytes."""

    no_exit_request: int
    """From uc_struct: a byte that, set, leaves exit checks to block starts."""
    env: int
    """CPUX86State in CPUState."""
    exception_index: int
    interrupt_request: int
    icount_high: int
    """u16 in CPUState; 0xffff makes translated code return to the main loop at the next block."""
    # In ENV:
    error_code: int
    exception_is_int: int
    old_exception: int
    vm_vmcb: int
    tsc_offset: int
    intercept: int
    intercept_cr_read: int
    intercept_cr_write: int
    star: int
    lstar: int
    cstar: int
    fmask: int
    kernel_gs_base: int
    dr7: int
    """The last of the debug registers, 8 bytes each; 32 bytes of pointers follow."""
    tlb_fast: int
    """Per mmu_idx a mask and a table, 16 bytes; negative: it lies before ENV."""
    cpu_class: int
    """From ENV, negative: the pointer to the CPU's class."""
    class_tlb_fill: int
    """In the class: the function that fills the TLB."""


_WORD: Final = b"(....)"


def locate(library: Library) -> Offsets:
    """Decode the offsets from the library's code. Raises `MismatchError`."""
    find, word = partial(_find, library), _WORD
    env = find("x86_cpu_do_interrupt", b"\x48\x8d\xbf" + word, 0x50)
    # The 16-bit store that clears the flag, 14 bytes below env in 2.1.4, must be there.
    icount_high = find("cpu_exec", b"\x66\x44?\x89.(" + re.escape((env - 14).to_bytes(4, "little")) + b")", 0x800)
    intercept_io = find("helper_svm_check_io", b"\xf6\x87" + word + b"\x08", 0x10)  # bit 27
    hflags = find("cpu_svm_check_intercept_param", b"\xf6\x87" + word + b"\x20", 0x10)  # bit 21
    hflags2 = find("helper_stgi", b"\x83\x8b" + word + b"\x01", 0x30)

    def saved(vmcb_offset: int) -> int:
        """The field that helper_vmsave stores at an offset of the VMCB, which AMD's manual defines."""
        store = b"\x48\x8b\x93" + word + b"\x48\x8d\xb5" + re.escape(vmcb_offset.to_bytes(4, "little"))
        return find("helper_vmsave", store, 0x400)

    old_exception = find("x86_cpu_do_interrupt", b"\xc7\x83" + word + b"\xff\xff\xff\xff", 0x50) - env
    offsets = Offsets(
        no_exit_request=find("check_exit_request", b"\x80[\xb8-\xbf]" + word + b"\x00", 0x10),
        env=env,
        exception_index=find("x86_cpu_do_interrupt", b"\x8b\xb7" + word, 0x50),
        interrupt_request=find("x86_cpu_exec_interrupt", b"\x83[\x43\x45\x65\x63](.)\xbf", 0x100),
        icount_high=icount_high,
        error_code=find("x86_cpu_do_interrupt", b"\x8b\x8f" + word, 0x50) - env,
        exception_is_int=find("x86_cpu_do_interrupt", b"\x8b\x97" + word, 0x50) - env,
        old_exception=old_exception,
        vm_vmcb=find("helper_svm_check_io", b"\x48\x8b\x87" + word, 0x60),
        tsc_offset=find("helper_svm_check_io", b"\x48\x8b\x87" + word, 0x60) + 8,
        intercept=intercept_io - 3,
        intercept_cr_read=find("cpu_svm_check_intercept_param", b"\x0f\xb7\x87" + word, 0x40),
        intercept_cr_write=find(
            "cpu_svm_check_intercept_param", b"\x0f\xb7\x8f" + word + b"\x0f\xa3\xc1\x73\xb5", 0x100
        ),
        star=saved(0x600),
        lstar=saved(0x608),
        cstar=saved(0x610),
        fmask=saved(0x618),
        kernel_gs_base=saved(0x620),
        dr7=old_exception - 40,
        tlb_fast=_signed(find("get_page_addr_code_hostp", b"\x49\x8b\x54[\x24](.)\x48\xc1\xea\x06"), 8),
        cpu_class=_signed(find("get_page_addr_code_hostp", b"\x48\x8b\x85" + word + b"\x48\x83\xec\x08"), 32),
        class_tlb_fill=find("get_page_addr_code_hostp", b"\xff\x50(.)"),
    )
    if hflags != HFLAGS + 2 or hflags2 != HFLAGS2:
        raise MismatchError("hflags are not where expected")
    if offsets.tsc_offset + 8 != offsets.intercept:
        raise MismatchError("tsc_offset is not where expected")
    return offsets


def address_of(library: Library, function: str) -> int:
    """Return the address of the library's `function` for x86-64 guests. Raises `MismatchError` where it has none."""
    address = library.symbol(f"{function}_x86_64")
    if address is None:
        raise MismatchError(f"no function {function}_x86_64")
    return address


def _find(library: Library, function: str, pattern: bytes, length: int = 0x200) -> int:
    """The little-endian 32-bit number in the group of `pattern`, matched in the code of `function`."""
    match = re.search(pattern, ctypes.string_at(address_of(library, function), length), re.S)
    if match is None:
        raise MismatchError(f"the code of {function} is not as expected")
    return int.from_bytes(match[1], "little")


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def find_env(library: Library, uc: int, offsets: Offsets) -> tuple[int, int]:
    """Return the addresses of CPUState and CPUX86State, having compared registers set by the public API."""
    get_cpu = library.function("qemu_get_cpu_x86_64", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    cpu = get_cpu(uc, -1) or get_cpu(uc, 0)  # the one CPU's index is -1 until it first runs
    if not cpu:
        raise MismatchError("there is no CPU")
    env = cpu + offsets.env
    markers = {_RAX: REGS, _R15: REGS + 15 * 8, _RIP: RIP, _CR3: CR + 3 * 8, _DR0: offsets.dr7 - 56, _DR7: offsets.dr7}
    for number, (register, offset) in enumerate(markers.items(), 1):
        before, marker = library.read_register(uc, register), number * 0x1111000
        library.write_register(uc, register, marker)
        found = ctypes.c_uint64.from_address(env + offset).value
        library.write_register(uc, register, before)
        if found != marker:
            raise MismatchError(f"register {register} is not at offset {offset}")
    return cpu, env


_RAX, _R15, _RIP, _CR3, _DR0, _DR7 = 35, 113, 41, 53, 66, 73


def check_context(library: Library, uc: int) -> int:
    """Compare the public context blob with registers set by the public API. Raises `MismatchError`.

    Returns how many bytes of CPUX86State are in it: what the library says is a CPU's state.
    """
    context = library.context(uc)
    try:
        for number, (register, offset) in enumerate(
            {_RAX: REGS, _R15: REGS + 15 * 8, _RIP: RIP, _CR3: CR + 24}.items(), 1
        ):
            before, marker = library.read_register(uc, register), number * 0x1111000
            library.write_register(uc, register, marker)
            context.save()
            library.write_register(uc, register, before)
            at = CONTEXT_HEADER + offset
            if int.from_bytes(context.data[at : at + 8], "little") != marker:
                raise MismatchError(f"register {register} is not at offset {at} of the context")
        return len(context.data) - CONTEXT_HEADER
    finally:
        context.close()


@dataclass(frozen=True)
class Blocks:
    """What `quicken` of stubs.s must know of translated blocks: those slots of its table, with their names."""

    generated: int
    buffer: int
    swept: int
    head: int
    head_end: int
    check_exit: int
    quick: int


def find_blocks(library: Library, uc: int, offsets: Offsets) -> Blocks:
    """Find how the library begins a block, and where it keeps them. Raises `MismatchError`."""
    find = partial(_find, library)
    # From the CPU to its uc_struct, from there to the TCGContext, and there the start of the code.
    loads = b"\x48\x8b\x87....\x4c\x8b\xa8(....)\x48\x89\xf0\x49[\x2b]\x85....\x49\x39\x85"
    context_at = find("cpu_restore_state", loads, 0x30)
    buffer = find("cpu_restore_state", b"\x4c\x8b\xa8....\x48\x89\xf0\x49[\x2b]\x85" + _WORD, 0x30)
    # A block lies behind its descriptor, both at multiples of the instruction cache's lines.
    generated = find("tcg_tb_alloc", b"\x48\x63\x88....\x48\x8b\x87" + _WORD, 0x30)
    line_at = find("tcg_tb_alloc", b"\x48\x63\x88" + _WORD, 0x20)
    descriptor = find("tcg_tb_alloc", b"\x4c\x8d\x81" + _WORD, 0x30) + 1
    line = ctypes.c_int32.from_address(uc + line_at).value
    flag = find(
        "helper_check_exit_request", b"^\x4c\x8b\x87....\x41\x8b\x80" + _WORD + b"\x85\xc0\x79\x04\x85\xf6", 0x20
    )
    near = flag - offsets.env
    if line <= 0 or line % 64 or -descriptor % line < 32 or flag != offsets.icount_high - 2 or not -128 <= near < 0:
        raise MismatchError("translated blocks are not laid out as expected")
    context = ctypes.c_uint64.from_address(uc + context_at).value
    if not context:
        raise MismatchError("there is no place for translated blocks")
    head = b"\x48\xbf" + uc.to_bytes(8, "little") + b"\x33\xf6"
    return Blocks(
        generated=context + generated,
        buffer=context + buffer,
        swept=ctypes.c_uint64.from_address(context + generated).value,
        head=int.from_bytes(head[:8], "little"),
        head_end=int.from_bytes(head[8:], "little"),
        check_exit=address_of(library, "helper_check_exit_request"),
        quick=int.from_bytes(b"\x83\x7d" + bytes((near & 0xFF,)) + b"\x00\x79\x0c\xe8\xd5", "little"),
    )
