"""Interrupts and NMIs of a guest (Intel SDM vol. 3A, chapter 6), in both ways of the Unicorn engine."""

from __future__ import annotations

import threading

import pytest
from rig import (
    CODE,
    DATA,
    DATA64,
    MMIO,
    Guest,
    RealModeGuest,
    Vectors,
    code16,
    code64,
)

from iobus.bus import Device
from iobus.exits import HltExit, KickExit

pytestmark = pytest.mark.usefixtures("way")

HANDLERS = CODE + 0x1000
LOG_RIP = code64("""
    48 8b 04 24  ; mov rax, [rsp]
    48 ab        ; stosq
    48 cf        ; iretq
""")
"""A handler that notes where it came from."""


class Port(Device):
    """Calls a function at every write, with the value."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        self.function = function

    def write(self, offset: int, size: int, value: int) -> None:
        self.function(value)


def log_vector(vector: int) -> bytes:
    """A handler that notes its vector: MOV AL, vector; STOSB; IRETQ."""
    return bytes((0xB0, vector, 0xAA, 0x48, 0xCF))


# The interrupt window.


@pytest.mark.parametrize(
    ("opening", "length"),
    [
        (code64("""
            fb     ; sti
            ff c1  ; inc ecx
        """), 3),
        (code64("""
            68 02 02 00 00  ; push 0x202
            9d              ; popfq
        """), 6),
    ],
    ids=["STI and its shadow", "POPF"],
)  # fmt: skip
def test_a_waiting_interrupt_comes_exactly_when_the_window_opens(opening: bytes, length: int) -> None:
    """It is taken at the first instruction boundary at which it may be, and not one later."""
    program = opening + code64("""
        ff c1  ; inc ecx
        ff c1  ; inc ecx
        fa     ; cli
        f4     ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(0x40, LOG_RIP, HANDLERS)
        guest.set(rdx=DATA64)
        Vectors(guest.machine, 0x40)
        guest.finish()
        assert guest.word() == CODE + length


@pytest.mark.parametrize("period", [6, 10, 100, 200, 1000, 1065, 3000])
def test_a_window_of_an_instruction_in_a_long_loop_is_met(period: int) -> None:
    """Interrupts are open for one instruction of the loop: the one that waits gets in there, whatever the length."""
    loop = code64("""
        fb                          ; sti
        90                          ; nop
        fa                          ; cli
    """) + b"\x90" * (period - 6) + code64("""
        83 3c 25 00 00 03 00 00     ; cmp dword ptr [0x30000], 0
    """)  # fmt: skip
    jump = b"\x0f\x84" + (-len(loop) - 6).to_bytes(4, "little", signed=True)  # JE to its start
    with Guest(loop + jump + b"\xf4") as guest:
        guest.gate(
            0x40,
            code64("""
                ff 04 25 00 00 03 00  ; inc dword ptr [0x30000]
                48 cf                 ; iretq
        """),
            HANDLERS,
        )
        Vectors(guest.machine, 0x40)
        guest.finish()
        assert guest.word(size=4) == 1


def test_sti_followed_by_cli_opens_no_window() -> None:
    """The shadow covers the CLI: the interrupt waits on."""
    program = code64("""
        fb  ; sti
        fa  ; cli
        f4  ; hlt
    """)
    with Guest(program) as guest:
        controller = Vectors(guest.machine, 0x40)
        guest.finish()
        assert controller.waiting


def test_sti_and_hlt_is_woken_behind_the_hlt() -> None:
    """The idle loop's idiom: an interrupt that waits already is taken with the HLT done."""
    program = code64("""
        fb  ; sti
        f4  ; hlt
        fa  ; cli
        f4  ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(0x40, LOG_RIP, HANDLERS)
        Vectors(guest.machine, 0x40)
        guest.finish()
        assert guest.word() == CODE + 2


def test_interrupts_with_no_window_wait_for_iret() -> None:
    """A handler's interrupt gate masks; the next comes at its IRET, before the interrupted code goes on."""
    program = code64("""
        fb  ; sti
        90  ; nop
        90  ; nop
        fa  ; cli
        f4  ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(0x40, LOG_RIP, HANDLERS)
        controller = Vectors(guest.machine, *[0x40] * 5)
        guest.finish()
        assert guest.memory.read(DATA, 40) == (CODE + 2).to_bytes(8, "little") * 5
        assert not controller.waiting


def test_all_vectors_are_delivered_once_and_in_the_controllers_order() -> None:
    """224 interrupts of as many vectors."""
    program = code64("""
        fb                 ; sti
        81 ff e0 00 03 00  ; cmp edi, 0x300e0
        75 f8              ; jne .-6
        fa                 ; cli
        f4                 ; hlt
    """)
    order = [0x20 + 75 * index % 224 for index in range(224)]
    with Guest(program) as guest:
        for vector in order:
            guest.gate(vector, log_vector(vector), HANDLERS + 16 * vector)
        Vectors(guest.machine, *order)
        guest.finish()
        assert guest.memory.read(DATA, 225) == bytes((*order, 0))


def test_interrupts_from_another_thread_are_all_counted() -> None:
    """10,000 requests against a guest that spins, at any moment: it counts 10,000."""
    program = code64("""
        fb                 ; sti
        48 ff c1           ; inc rcx
        81 3f 10 27 00 00  ; cmp dword ptr [rdi], 10000
        75 f5              ; jne .-9
        fa                 ; cli
        f4                 ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(
            0x40,
            code64("""
                ff 07  ; inc dword ptr [rdi]
                48 cf  ; iretq
        """),
            HANDLERS,
        )
        controller = Vectors(guest.machine)

        def requests() -> None:
            for _ in range(10_000):
                controller.request(0x40)

        thread = threading.Thread(target=requests)
        thread.start()
        guest.finish()
        thread.join()
        assert guest.word(size=4) == 10_000


def test_interrupts_and_kicks_do_not_disturb_each_other() -> None:
    """Kicks from one thread and interrupts from another: every interrupt is counted, however often it stops."""
    program = code64("""
        fb                 ; sti
        48 ff c1           ; inc rcx
        81 3f d0 07 00 00  ; cmp dword ptr [rdi], 2000
        75 f5              ; jne .-9
        fa                 ; cli
        f4                 ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(
            0x40,
            code64("""
                ff 07  ; inc dword ptr [rdi]
                48 cf  ; iretq
        """),
            HANDLERS,
        )
        controller = Vectors(guest.machine)
        done, stopped = threading.Event(), threading.Semaphore()

        def requests() -> None:
            for _ in range(20):
                stopped.acquire()
                for _ in range(100):
                    controller.request(0x40)

        def kicks() -> None:
            while not done.wait(0.0002):
                guest.vcpu.kick()

        threads = [threading.Thread(target=requests), threading.Thread(target=kicks)]
        for thread in threads:
            thread.start()
        while isinstance(exit := guest.vcpu.run(), KickExit):
            stopped.release()
        done.set()
        for thread in threads:
            thread.join()
        assert exit == HltExit()
        assert guest.word(size=4) == 2000


def test_interrupts_in_real_mode_go_through_the_vector_table() -> None:
    """At address 0, 4 bytes each; INT and an external interrupt alike."""
    program = code16("""
        cd 21  ; int 0x21
        fb     ; sti
        90     ; nop
        fa     ; cli
        f4     ; hlt
    """)
    with RealModeGuest(program) as guest:
        for vector in (0x21, 0x40):
            guest.memory.store(4 * vector, 4, 0x6000 + vector)
            handler = code16("""
                b0 00        ; mov al, 0
                00 06 00 05  ; add [0x500], al
                cf           ; iret
            """)
            guest.memory.write(0x6000 + vector, handler.replace(b"\xb0\0", bytes((0xB0, vector))))
        Vectors(guest.machine, 0x40)
        guest.finish()
        assert guest.memory.load(0x500, 1) == 0x61


class Raising(Vectors, Device):
    """A controller that is a device too: each read requests an interrupt, also that of an MSR, which it has not."""

    reads = 0

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        self.request(0x40)
        return 0

    def read_msr(self, index: int) -> None:
        self.read(0, 8)


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("6c     ; insb", 14),
        ("48 a4  ; movsb", 14),
        pytest.param("0f 32  ; rdmsr", 13, marks=pytest.mark.lost("the MSRs of the interrupt controller")),
    ],
    ids=["INSB to a missing page", "MOVSB to a missing page", "RDMSR of one that is not there"],
)
def test_an_interrupt_raised_by_an_access_that_ends_in_a_fault_is_not_lost(instruction: str, fault: int) -> None:
    """The device requests it in the middle of the instruction: it is taken behind the instruction's exception."""
    access = code64(instruction)
    program = code64("""
        fb              ; sti
        b9 ff 08 00 00  ; mov ecx, 0x8ff
    """) + access + code64("""
        90  ; nop
        fa  ; cli
        f4  ; hlt
    """)  # fmt: skip
    with Guest(program) as guest:
        device = Raising(guest.machine)
        guest.machine.pio.attach(device, 0x10, 1)
        guest.machine.mmio.attach(device, MMIO, 8)
        guest.gate(fault, code64(f"""
            48 ff 04 25 00 00 03 00      ; inc qword ptr [0x30000]
            48 83 c4 08                  ; add rsp, 8
            48 83 04 24 {len(access):02x}               ; add qword ptr [rsp], {len(access)}
            48 cf                        ; iretq
        """), HANDLERS)  # fmt: skip
        guest.gate(0x40, code64("""
            48 ff 04 25 08 00 03 00  ; inc qword ptr [0x30008]
            48 cf                    ; iretq
        """), HANDLERS + 0x100)  # fmt: skip
        guest.set(rdx=0x10, rsi=MMIO, rdi=guest.map(0, 0, 0))
        guest.finish()
        assert (guest.word(), guest.word(8)) == (1, device.reads)


# NMIs.


def test_an_nmi_within_an_nmi_waits_for_iret() -> None:
    """A second one is held through everything else that wants the CPU's attention, and none is lost."""
    program = code64("""
        83 3c 25 00 00 03 00 02  ; cmp dword ptr [0x30000], 2
        75 f6                    ; jne .-8
        f4                       ; hlt
    """)
    handler = code64("""
        ff 04 25 00 00 03 00  ; inc dword ptr [0x30000]
        b0 01                 ; mov al, 1
        e6 10                 ; out 0x10, al
        b9 e8 03 00 00        ; mov ecx, 1000
        ff c9                 ; dec ecx
        75 fc                 ; jnz .-2
        b0 02                 ; mov al, 2
        e6 10                 ; out 0x10, al
        b9 e8 03 00 00        ; mov ecx, 1000
        ff c9                 ; dec ecx
        75 fc                 ; jnz .-2
        8b 04 25 00 00 03 00  ; mov eax, [0x30000]
        89 04 85 04 00 03 00  ; mov [0x30004 + rax * 4], eax
        48 cf                 ; iretq
    """)
    with Guest(program) as guest:
        guest.gate(2, handler, HANDLERS)
        nmis = iter([guest.vcpu.nmi])
        actions = {1: lambda: next(nmis, int)(), 2: guest.vcpu.interrupt}
        guest.machine.pio.attach(Port(lambda value: actions[value]()), 0x10, 1)
        guest.vcpu.nmi()
        guest.finish()
        assert [guest.word(at, 4) for at in (0, 8, 12)] == [2, 1, 2]


def test_a_halt_in_the_service_of_an_nmi_is_not_ended_by_the_next() -> None:
    """The second NMI comes when the first one's handler has returned, and not before."""
    handler = code64("""
        ff 04 25 00 00 03 00     ; inc dword ptr [0x30000]
        83 3c 25 00 00 03 00 02  ; cmp dword ptr [0x30000], 2
        74 03                    ; je .+5
        e6 10                    ; out 0x10, al
        f4                       ; hlt
        48 cf                    ; iretq
    """)
    with Guest(code64("fa 90 f4  ; cli; nop; hlt")) as guest:
        guest.gate(2, handler, HANDLERS)
        guest.machine.pio.attach(Port(lambda value: guest.vcpu.nmi()), 0x10, 1)
        guest.vcpu.nmi()
        halted = guest.finish().rip
        assert (halted, guest.word(0, 4)) == (HANDLERS + len(handler) - 2, 1)
        guest.set(rip=halted)
        assert (guest.finish().rip, guest.word(0, 4)) == (CODE + 3, 2)


def test_an_nmi_comes_before_an_interrupt() -> None:
    """Both wait and both may be taken (SDM table 6-2): each interrupts the program, not the other's handler."""
    program = code64("""
        fa  ; cli
        f4  ; hlt
    """)
    with Guest(program) as guest:
        guest.gate(
            2,
            code64("""
            48 8b 1c 24  ; mov rbx, [rsp]
            48 cf        ; iretq
        """),
            HANDLERS,
        )
        guest.gate(
            0x40,
            code64("""
            48 8b 0c 24  ; mov rcx, [rsp]
            48 cf        ; iretq
        """),
            HANDLERS + 0x100,
        )
        guest.set(rflags=0x202)
        Vectors(guest.machine, 0x40)
        guest.vcpu.nmi()
        r = guest.finish()
        assert (r.rbx, r.rcx) == (CODE, CODE)
