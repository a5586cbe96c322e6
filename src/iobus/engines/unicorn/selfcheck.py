"""The start-up check: a small guest does, once per process, all that native.py rests on.

Offsets that match (internals.py) do not say that the library acts as native.py expects. So a guest of
a few dozen instructions causes each kind of event, and what reaches Python is compared with the exact
list. Any difference makes the engine use the public API only (fallback.py).
"""

from __future__ import annotations

import struct
import threading
from typing import Final

from iobus.bus import Device
from iobus.clock import SteppedClock
from iobus.cpu_registers import Registers, Segment
from iobus.engines.unicorn import internals as at
from iobus.engines.unicorn.internals import MismatchError
from iobus.engines.unicorn.library import Library
from iobus.engines.unicorn.native import INTERCEPTS, NativeCpu
from iobus.engines.unicorn.native_instance import NativeInstance
from iobus.exits import HltExit
from iobus.machine import Machine
from iobus.vcpu import VCPU

_SECONDS: Final = 5.0
"""The check takes some 10 ms; a guest that has run away is given up after this time."""

_PML4, _PDPT, _PAGES, _GDT, _IDT, _CODE, _STACK, _RAM = (0x1000 * page for page in (1, 2, 3, 4, 5, 6, 8, 8))

# The guest, in 64-bit mode at CPL 0: address, and machine code beside its assembly.
_PROGRAM: Final = {
    _CODE: """
        b9 82 00 00 c0          ; mov ecx, 0xc0000082 (LSTAR)
        b8 00 62 00 00          ; mov eax, 0x6200
        31 d2                   ; xor edx, edx
        0f 30                   ; wrmsr
        ff c9                   ; dec ecx (STAR)
        ba 08 00 00 00          ; mov edx, 8
        0f 30                   ; wrmsr
        b9 84 00 00 c0          ; mov ecx, 0xc0000084 (FMASK: the carry flag)
        b8 01 00 00 00          ; mov eax, 1
        31 d2                   ; xor edx, edx
        0f 30                   ; wrmsr
        b9 1b 00 00 00          ; mov ecx, 0x1b
        0f 32                   ; rdmsr
        e7 10                   ; out 0x10, eax
        b9 30 08 00 00          ; mov ecx, 0x830
        ba 22 00 00 00          ; mov edx, 0x22
        b8 11 00 00 00          ; mov eax, 0x11
        0f 30                   ; wrmsr
        b9 45 23 01 00          ; mov ecx, 0x12345
        0f 32                   ; rdmsr, which faults
        b8 07 00 00 00          ; mov eax, 7
        44 0f 22 c0             ; mov cr8, rax
        44 0f 20 c3             ; mov rbx, cr8
        89 d8                   ; mov eax, ebx
        e7 11                   ; out 0x11, eax
        e7 20                   ; out 0x20, eax: requests an interrupt
        fb                      ; sti
        e7 12                   ; out 0x12, eax: in the shadow of STI
        e7 13                   ; out 0x13, eax (at 0x605c)
        fa                      ; cli
        e7 20                   ; out 0x20, eax
        fb                      ; sti
        f4                      ; hlt
        fa                      ; cli (at 0x6063)
        f9                      ; stc
        0f 05                   ; syscall
        e7 14                   ; out 0x14, eax (at 0x6067)
        cd 41                   ; int 0x41
        e7 17                   ; out 0x17, eax (at 0x606b)
        0f 0b                   ; ud2 (at 0x606d)
        e8 0c 02 00 00          ; call 0x6280
        e7 18                   ; out 0x18, eax
        c6 04 25 81 62 20 00 02 ; mov byte ptr [0x206281], 2: the same code through a second mapping
        e8 fd 01 00 00          ; call 0x6280
        e7 18                   ; out 0x18, eax
        b9 82 00 00 c0          ; mov ecx, 0xc0000082 (LSTAR)
        ba 00 00 00 80          ; mov edx, 0x80000000
        0f 30                   ; wrmsr of what is not canonical, which faults
        0f 20 e0                ; mov rax, cr4
        83 c8 04                ; or eax, 4 (TSD)
        0f 22 e0                ; mov cr4, rax
        0f 20 e0                ; mov rax, cr4
        e7 19                   ; out 0x19, eax
        fb                      ; sti
        90                      ; nop
        e7 20                   ; out 0x20, eax: the interrupt comes right behind it
        b0 09                   ; mov al, 9 (at 0x60a3)
        e7 1a                   ; out 0x1a, eax
        fa                      ; cli
        f4                      ; hlt
    """,
    _CODE + 0x200: """
        9c                      ; pushfq: SYSCALL comes here
        58                      ; pop rax
        e7 15                   ; out 0x15, eax
        89 c8                   ; mov eax, ecx
        ff e1                   ; jmp rcx
    """,
    _CODE + 0x280: """
        b0 01                   ; mov al, 1
        c3                      ; ret
    """,
}
_HANDLERS: Final = {
    0x40: """
        8b 04 24                ; mov eax, [rsp]
        e7 40                   ; out 0x40, eax
        48 cf                   ; iretq
    """,
    0x41: """
        b9 1b 00 00 00          ; mov ecx, 0x1b
        0f 32                   ; rdmsr: an intercept behind an INT n
        e7 16                   ; out 0x16, eax
        48 cf                   ; iretq
    """,
    13: """
        58                      ; pop rax
        48 83 04 24 02          ; add qword ptr [rsp], 2
        e7 1d                   ; out 0x1d, eax
        48 cf                   ; iretq
    """,
    6: """
        8b 04 24                ; mov eax, [rsp]
        48 83 04 24 02          ; add qword ptr [rsp], 2
        e7 06                   ; out 6, eax
        48 cf                   ; iretq
    """,
}
_MSR_VALUE: Final = 0xFEE00900

_EXPECTED: Final[list[tuple[object, ...]]] = [
    ("rdmsr", 0x1B), ("out", 0x10, _MSR_VALUE),
    ("wrmsr", 0x830, 0x22_00000011),
    ("rdmsr", 0x12345), ("out", 0x1D, 0),
    ("mov to cr8", 7), ("mov from cr8",), ("out", 0x11, 7),
    ("out", 0x20, 7), ("out", 0x12, 7), ("acknowledge",), ("out", 0x40, 0x605C), ("out", 0x13, 0x605C),
    ("out", 0x20, 0x605C), ("acknowledge",), ("out", 0x40, 0x6063),
    ("out", 0x15, 0x46), ("out", 0x14, 0x6067),
    ("rdmsr", 0x1B), ("out", 0x16, _MSR_VALUE), ("out", 0x17, _MSR_VALUE),
    ("out", 6, 0x606D),
    ("out", 0x18, 0x6001), ("out", 0x18, 0x6002),
    ("out", 0x1D, 0), ("out", 0x19, 0x624),
    ("out", 0x20, 0x624), ("acknowledge",), ("out", 0x40, 0x60a3), ("out", 0x1A, 0x6009),
    (HltExit(),),
]  # fmt: skip


class _Witness(Device):
    """The ports and the interrupt controller of the guest: writes down what reaches it."""

    def __init__(self, vcpu: VCPU) -> None:
        self._vcpu = vcpu
        self._requested = False
        self._priority = 0
        self.events: list[tuple[object, ...]] = []

    def write(self, offset: int, size: int, value: int) -> None:
        self.events.append(("out", offset, value))
        if offset == 0x20:
            self._requested = True
            self._vcpu.interrupt()

    def pending(self) -> bool:
        return self._requested

    def acknowledge(self) -> int | None:
        self.events.append(("acknowledge",))
        self._requested = False
        return 0x40

    def init(self) -> None:
        """It sees none."""

    def read_cr8(self) -> int:
        self.events.append(("mov from cr8",))
        return self._priority

    def write_cr8(self, value: int) -> None:
        self.events.append(("mov to cr8", value))
        self._priority = value

    def read_msr(self, index: int) -> int | None:
        self.events.append(("rdmsr", index))
        return _MSR_VALUE if index == 0x1B else None

    def write_msr(self, index: int, value: int) -> bool:
        self.events.append(("wrmsr", index, value))
        return True


_verdict: str | None = None  # of this process: "" is a pass


def require(library: Library) -> None:
    """Run the check, the first time in this process. Raises `MismatchError` unless it passed."""
    global _verdict
    if _verdict is None:
        try:
            _check(library)
            _verdict = ""
        except Exception as exc:
            _verdict = str(exc) if isinstance(exc, MismatchError) else f"its check failed with {exc!r}"
    if _verdict:
        raise MismatchError(_verdict)


def _check(library: Library) -> None:
    at.locate(library)
    with Machine(clock=SteppedClock()) as machine:
        machine.memory.add(0, _RAM)
        vcpu = machine.vcpus[0]
        witness = _Witness(vcpu)
        machine.pio.attach(witness, 0, 0x100)
        vcpu.controller = witness
        instance = NativeInstance(library, machine, INTERCEPTS)
        cpu = NativeCpu(instance, vcpu)
        vcpu.executor = cpu

        def stop() -> None:
            cpu.kick()
            library.stop(instance.uc)

        give_up = threading.Timer(_SECONDS, stop)
        give_up.daemon = True
        try:
            cpu.init()
            _set_up(vcpu)
            give_up.start()
            witness.events.append((vcpu.run(lambda *_: 0),))
        finally:
            give_up.cancel()
            instance.close()
    for number, expected in enumerate(_EXPECTED):
        found = witness.events[number] if number < len(witness.events) else None
        if found != expected:
            raise MismatchError(f"event {number} of its check was {found}, not {expected}")
    if len(witness.events) > len(_EXPECTED):
        raise MismatchError(f"after the last event of its check there was {witness.events[len(_EXPECTED)]}")


def _set_up(vcpu: VCPU) -> None:
    memory = vcpu.machine.memory
    memory.store(_PML4, 8, _PDPT | 3)
    memory.store(_PDPT, 8, _PAGES | 3)
    for page in range(2):  # two mappings of the same 2 MiB
        memory.store(_PAGES + 8 * page, 8, 0x83)
    memory.write(_GDT, struct.pack("<3Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
    for address, listing in _PROGRAM.items():
        memory.write(address, _assembled(listing))
    for index, (vector, listing) in enumerate(_HANDLERS.items()):
        handler = _CODE + 0x300 + 0x40 * index
        memory.write(handler, _assembled(listing))
        memory.write(_IDT + 16 * vector, struct.pack("<HHHH", handler, 8, 0x8E00, 0))
    data = Segment(0x10, 0, 0xFFFFFFFF, 0xC093)
    vcpu.registers = Registers(
        rip=_CODE, rsp=_STACK, cs=Segment(8, 0, 0xFFFFFFFF, 0xA09B), ds=data, es=data, ss=data, fs=data, gs=data,
        gdt_base=_GDT, gdt_limit=0x17, idt_base=_IDT, idt_limit=0xFFF,
        cr0=0x80010033, cr3=_PML4, cr4=0x620, efer=0xD01,
    )  # fmt: skip


def _assembled(listing: str) -> bytes:
    return bytes.fromhex("".join(line.split(";")[0] for line in listing.splitlines()))
