"""What `run` hands back from small guests on KVM, in 16, 32 and 64 bits, and that the machine goes on from it."""

from __future__ import annotations

import pytest
from bus_devices import Recorder
from kvm_rig import Guest, ProtectedGuest, RealModeGuest, needs_kvm
from rig import CODE, DATA, IDT, MMIO, RAM, WINDOW, answered, code16, code64

from iobus.bus import Device, DeviceError
from iobus.engines.kvm import abi, failure, ioctls
from iobus.exits import EngineError, HltExit, KickExit, MmioExit, PioExit, PowerOffExit, ShutdownExit

pytestmark = needs_kvm


# Unclaimed accesses.


def test_mmio_reads_are_answered_by_the_caller() -> None:
    """Each size comes as one exit with its address, and the caller's data ends in the register, no more of it."""
    program = code64("""
        48 c7 c0 ff ff ff ff  ; mov rax, -1
        8a 03                 ; mov al, [rbx]
        48 c7 c1 ff ff ff ff  ; mov rcx, -1
        66 8b 4b 02           ; mov cx, [rbx + 2]
        48 c7 c2 ff ff ff ff  ; mov rdx, -1
        8b 53 04              ; mov edx, [rbx + 4]
        48 8b 73 08           ; mov rsi, [rbx + 8]
        f4                    ; hlt
    """)
    with Guest(program) as guest:
        exits = answered(guest, 0x11, 0x2222, 0x33333333, 0x5555555544444444)
        assert exits == [
            MmioExit(MMIO, 1, False, 0x11),
            MmioExit(MMIO + 2, 2, False, 0x2222),
            MmioExit(MMIO + 4, 4, False, 0x33333333),
            MmioExit(MMIO + 8, 8, False, 0x5555555544444444),
            HltExit(),
        ]
        r = guest.vcpu.registers
        assert (r.rax, r.rcx) == (0xFFFFFFFFFFFFFF11, 0xFFFFFFFFFFFF2222)
        assert (r.rdx, r.rsi) == (0x33333333, 0x5555555544444444)


def test_mmio_writes_bring_their_data() -> None:
    """The exit of a write holds the value, cut to its size."""
    program = code64("""
        48 b8 88 77 66 55 44 33 22 11  ; mov rax, 0x1122334455667788
        88 03                          ; mov [rbx], al
        66 89 43 02                    ; mov [rbx + 2], ax
        89 43 04                       ; mov [rbx + 4], eax
        48 89 43 08                    ; mov [rbx + 8], rax
        f4                             ; hlt
    """)
    with Guest(program) as guest:
        assert answered(guest) == [
            MmioExit(MMIO, 1, True, 0x88),
            MmioExit(MMIO + 2, 2, True, 0x7788),
            MmioExit(MMIO + 4, 4, True, 0x55667788),
            MmioExit(MMIO + 8, 8, True, 0x1122334455667788),
            HltExit(),
        ]


def test_ports_of_all_sizes() -> None:
    """IN and OUT, by immediate and by DX, are exits of their own kind."""
    program = code64("""
        e4 10           ; in al, 0x10
        ba fe ff 00 00  ; mov edx, 0xfffe
        66 ed           ; in ax, dx
        89 c1           ; mov ecx, eax
        ba 34 12 00 00  ; mov edx, 0x1234
        ed              ; in eax, dx
        e6 20           ; out 0x20, al
        66 ef           ; out dx, ax
        ef              ; out dx, eax
        f4              ; hlt
    """)
    with Guest(program) as guest:
        assert answered(guest, 0xAB, 0xCDEF, 0x89ABCDEF) == [
            PioExit(0x10, 1, False, 0xAB),
            PioExit(0xFFFE, 2, False, 0xCDEF),
            PioExit(0x1234, 4, False, 0x89ABCDEF),
            PioExit(0x20, 1, True, 0xEF),
            PioExit(0x1234, 2, True, 0xCDEF),
            PioExit(0x1234, 4, True, 0x89ABCDEF),
            HltExit(),
        ]
        r = guest.vcpu.registers
        assert (r.rcx, r.rax) == (0xCDEF, 0x89ABCDEF)


def test_a_sixteen_bit_guest() -> None:
    """In real mode: RAM, ports in both directions, and the halt."""
    program = code16("""
        a0 00 50  ; mov al, [0x5000]
        ba f8 03  ; mov dx, 0x3f8
        ee        ; out dx, al
        e5 10     ; in ax, 0x10
        a3 00 60  ; mov [0x6000], ax
        f4        ; hlt
    """)
    with RealModeGuest(program) as guest:
        guest.memory.write(0x5000, b"\x5a")
        exits = answered(guest, 0x1234)
        assert exits == [PioExit(0x3F8, 1, True, 0x5A), PioExit(0x10, 2, False, 0x1234), HltExit()]
        assert guest.memory.load(0x6000, 2) == 0x1234


def test_a_thirty_two_bit_guest() -> None:
    """In protected mode with flat segments, whose 4 GiB limits need the granularity bit: MMIO and ports."""
    program = code64("""
        8b 03     ; mov eax, [ebx]
        83 c0 01  ; add eax, 1
        89 43 04  ; mov [ebx + 4], eax
        66 e5 10  ; in ax, 0x10
        e7 20     ; out 0x20, eax
        f4        ; hlt
    """)
    with ProtectedGuest(program) as guest:
        assert answered(guest, 0x41, 0x1234) == [
            MmioExit(MMIO, 4, False, 0x41),
            MmioExit(MMIO + 4, 4, True, 0x42),
            PioExit(0x10, 2, False, 0x1234),
            PioExit(0x20, 4, True, 0x1234),
            HltExit(),
        ]


def test_an_access_of_sixteen_bytes_is_two_of_eight() -> None:
    """MOVUPS from and to a device: the lower address first."""
    program = code64("""
        0f 10 03     ; movups xmm0, [rbx]
        0f 11 43 20  ; movups [rbx + 0x20], xmm0
        f4           ; hlt
    """)
    low, high = 0x1122334455667788, 0x99AABBCCDDEEFF00
    with Guest(program) as guest:
        assert answered(guest, low, high) == [
            MmioExit(MMIO, 8, False, low),
            MmioExit(MMIO + 8, 8, False, high),
            MmioExit(MMIO + 0x20, 8, True, low),
            MmioExit(MMIO + 0x28, 8, True, high),
            HltExit(),
        ]


def test_a_write_over_two_pages_is_cut_at_the_page_and_into_sizes_of_the_bus() -> None:
    """1 + 3 bytes is 1, 2 + 1; 5 + 3 is 4 + 1, 2 + 1: no exit has another size, none crosses the page."""
    program = code64("""
        c7 83 ff 0f 00 00 11 22 33 44  ; mov dword ptr [rbx + 0xfff], 0x44332211
        48 b8 11 22 33 44 55 66 77 88  ; mov rax, 0x8877665544332211
        48 89 83 fb 0f 00 00           ; mov [rbx + 0xffb], rax
        f4                             ; hlt
    """)
    with Guest(program) as guest:
        assert answered(guest) == [
            MmioExit(MMIO + 0xFFF, 1, True, 0x11),
            MmioExit(MMIO + 0x1000, 2, True, 0x3322),
            MmioExit(MMIO + 0x1002, 1, True, 0x44),
            MmioExit(MMIO + 0xFFB, 4, True, 0x44332211),
            MmioExit(MMIO + 0xFFF, 1, True, 0x55),
            MmioExit(MMIO + 0x1000, 2, True, 0x7766),
            MmioExit(MMIO + 0x1002, 1, True, 0x88),
            HltExit(),
        ]


def test_a_write_over_two_pages_goes_to_each_pages_own_place() -> None:
    """Neighbouring virtual pages of two devices far apart: each gets its own bytes."""
    program = code64("""
        be fe 0f 00 40           ; mov esi, 0x40000ffe
        c7 06 11 22 33 44        ; mov dword ptr [rsi], 0x44332211
        f4                       ; hlt
    """)
    with Guest(program) as guest:
        first, second = Recorder(), Recorder()
        guest.machine.mmio.attach(first, MMIO, 0x1000)
        guest.machine.mmio.attach(second, MMIO + 0x7000, 0x1000)
        assert WINDOW == 0x40000000
        guest.map(0, MMIO)
        guest.map(1, MMIO + 0x7000)
        guest.finish()
        assert (first.calls, second.calls) == ([(0xFFE, 2, 0x2211)], [(0, 2, 0x4433)])


def test_a_read_over_two_pages_is_put_together() -> None:
    """The caller serves each part from its own memory; the registers have all of it."""
    program = code64("""
        8b 83 fd 0f 00 00     ; mov eax, [rbx + 0xffd]
        48 8b 8b fb 1f 00 00  ; mov rcx, [rbx + 0x1ffb]
        f4                    ; hlt
    """)
    content = bytes((7 * n + n // 256) & 0xFF for n in range(0x3000))
    with Guest(program) as guest:
        while isinstance(exit := guest.vcpu.run(), MmioExit):
            at = exit.address - MMIO
            assert exit.size in (1, 2, 4, 8)
            assert at // 4096 == (at + exit.size - 1) // 4096
            exit.data = int.from_bytes(content[at : at + exit.size], "little")
        r = guest.vcpu.registers
        assert r.rax == int.from_bytes(content[0xFFD:0x1001], "little")
        assert r.rcx == int.from_bytes(content[0x1FFB:0x2003], "little")


def test_an_access_half_in_ram_exits_for_the_other_half() -> None:
    """The end of RAM in the middle of an access: RAM gives its part, the caller the rest."""
    program = code64("""
        8b 04 25 fe ff 1f 00  ; mov eax, [0x1ffffe]
        89 0c 25 fe ff 1f 00  ; mov [0x1ffffe], ecx
        f4                    ; hlt
    """)
    with Guest(program) as guest:
        guest.memory.store(RAM - 2, 2, 0x2211)
        guest.set(rcx=0x44332211)
        exits = answered(guest, 0x4433)
        assert exits == [MmioExit(RAM, 2, False, 0x4433), MmioExit(RAM, 2, True, 0x4433), HltExit()]
        assert guest.vcpu.registers.rax == 0x44332211
        assert guest.memory.load(RAM - 2, 2) == 0x2211


# Strings.


def test_long_strings_lose_no_element() -> None:
    """5000 bytes in and 1500 words of 4 bytes out, over pages and KVM's buffer of one page; 0 elements are none."""
    program = code64("""
        ba 60 00 00 00        ; mov edx, 0x60
        b9 88 13 00 00        ; mov ecx, 5000
        f3 6c                 ; rep insb
        48 89 fe              ; mov rsi, rdi
        48 81 ee 70 17 00 00  ; sub rsi, 6000
        b9 dc 05 00 00        ; mov ecx, 1500
        f3 6f                 ; rep outsd
        31 c9                 ; xor ecx, ecx
        f3 6e                 ; rep outsb
        f4                    ; hlt
    """)

    class Stream(Device):
        given, taken = 0, b""

        def read(self, offset: int, size: int) -> int:
            assert size == 1
            self.given += 1
            return (self.given * 7 + self.given // 256) & 0xFF

        def write(self, offset: int, size: int, value: int) -> None:
            assert size == 4
            self.taken += value.to_bytes(size, "little")

    with Guest(program) as guest:
        stream = Stream()
        guest.machine.pio.attach(stream, 0x60, 4)
        guest.memory.write(DATA + 5000 - 6000, bytes(1000))
        r = guest.finish()
        assert (stream.given, len(stream.taken)) == (5000, 6000)
        data = bytes((n * 7 + n // 256) & 0xFF for n in range(1, 5001))
        assert guest.memory.read(DATA, 5001) == data + b"\0"
        assert stream.taken == bytes(1000) + data
        assert (r.rcx, r.rdi) == (0, DATA + 5000)


def test_a_string_ends_where_a_page_does() -> None:
    """REP STOSB over a device and REP INSB over RAM that end at a page that is not there: #PF with the counts exact.

    What lies before the page is done, an element at a time, and nothing behind it.
    """
    program = code64("""
        48 89 de        ; mov rsi, rbx
        bf f0 0f 00 40  ; mov edi, 0x40000ff0
        b0 77           ; mov al, 0x77
        b9 30 00 00 00  ; mov ecx, 0x30
        f3 aa           ; rep stosb
        f4              ; hlt
        ba 60 00 00 00  ; next: mov edx, 0x60
        bf fc 2f 00 40  ; mov edi, 0x40002ffc
        b9 08 00 00 00  ; mov ecx, 8
        f3 6c           ; rep insb
        f4              ; hlt
    """)
    handler = code64("""
        41 0f 20 d0  ; mov r8, cr2
        f4           ; hlt
    """)
    with Guest(program) as guest:
        device, port = Recorder(), Recorder(0x5A)
        guest.machine.mmio.attach(device, MMIO, 0x2000)
        guest.machine.pio.attach(port, 0x60, 1)
        guest.map(0, MMIO)
        guest.map(2, DATA)
        guest.gate(14, handler, CODE + 0x1000)
        r = guest.finish()
        assert (r.rcx, r.rdi, r.r8) == (0x20, WINDOW + 0x1000, WINDOW + 0x1000)
        assert device.calls == [(at, 1, 0x77) for at in range(0xFF0, 0x1000)]
        guest.set(rip=CODE + program.index(b"\xba"))
        r = guest.finish()
        assert (r.rcx, r.rdi, r.r8) == (4, WINDOW + 0x3000, WINDOW + 0x3000)
        assert guest.memory.read(DATA + 0xFFC, 4) == b"\x5a" * 4
        assert 4 <= len(port.calls) <= 8, "the kernel reads ahead, before it finds the place missing"


# Devices.


class Failing(Device):
    """Raises at each access."""

    def read(self, offset: int, size: int) -> int:
        raise RuntimeError("no more")

    def write(self, offset: int, size: int, value: int) -> None:
        raise RuntimeError("no more")


def test_a_devices_exception_comes_out_of_run_and_the_machine_goes_on() -> None:
    """The failed read gives ones, the failed write is dropped, and each next run goes on behind the access."""
    program = code64("""
        8b 0b     ; mov ecx, [rbx]
        89 4b 04  ; mov [rbx + 4], ecx
        e4 60     ; in al, 0x60
        f4        ; hlt
    """)
    with Guest(program) as guest:
        guest.machine.mmio.attach(Failing(), MMIO, 8)
        guest.machine.pio.attach(Failing(), 0x60, 1)
        for pattern in ("4-byte read at address 0x10000000", "write of 0xffffffff", "1-byte read at address 0x60"):
            with pytest.raises(DeviceError, match=pattern):
                guest.machine.run(timeout=60)
        r = guest.finish()
        assert (r.rcx, r.rax) == (0xFFFFFFFF, 0xFF)


def test_a_failed_element_does_not_end_the_string() -> None:
    """Of four elements the second fails: the others reach the device, and the failed one is ones."""

    class Second(Recorder):
        def read(self, offset: int, size: int) -> int:
            super().read(offset, size)
            if len(self.calls) == 2:
                raise RuntimeError("the second")
            return len(self.calls)

    program = code64("""
        b9 04 00 00 00  ; mov ecx, 4
        ba 60 00 00 00  ; mov edx, 0x60
        f3 6c           ; rep insb
        f4              ; hlt
    """)
    with Guest(program) as guest:
        device = Second()
        guest.machine.pio.attach(device, 0x60, 1)
        with pytest.raises(DeviceError, match="the second"):
            guest.machine.run(timeout=60)
        guest.finish()
        assert len(device.calls) == 4
        assert guest.memory.read(DATA, 4) == b"\x01\xff\x03\x04"


def test_registers_set_after_a_devices_exception_hold() -> None:
    """The rest of the failed instruction is brought to its end before they are set, and changes nothing after."""
    program = code64("""
        48 89 de              ; mov rsi, rbx
        48 8d bb 00 01 00 00  ; lea rdi, [rbx + 0x100]
        a5                    ; movsd
        f4                    ; hlt
        b8 07 00 00 00        ; mov eax, 7
        f4                    ; hlt
    """)
    with Guest(program) as guest:
        seen = Recorder()
        guest.machine.mmio.attach(Failing(), MMIO, 4)
        guest.machine.mmio.attach(seen, MMIO + 0x100, 4)
        with pytest.raises(DeviceError):
            guest.machine.run(timeout=60)
        guest.set(rip=CODE + 12, rsi=1, rdi=2)
        r = guest.finish()
        assert (r.rax, r.rsi, r.rdi) == (7, 1, 2)
        assert seen.calls == []


def test_a_stop_in_a_callback_leaves_the_instruction_complete() -> None:
    """A device stops the machine at the write of a MOVS: the exit finds registers behind the instruction."""

    class Switch(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            super().write(offset, size, value)
            guest.machine.stop(PowerOffExit())

    program = code64("""
        48 89 de              ; mov rsi, rbx
        48 8d bb 00 01 00 00  ; lea rdi, [rbx + 0x100]
        a5                    ; movsd
        e6 10                 ; out 0x10, al
        f4                    ; hlt
    """)
    with Guest(program) as guest:
        switch = Switch()
        guest.machine.mmio.attach(Recorder(0x12345678), MMIO, 4)
        guest.machine.mmio.attach(switch, MMIO + 0x100, 4)
        assert guest.machine.run(timeout=60) == PowerOffExit()
        r = guest.vcpu.registers
        assert (r.rip, r.rsi, r.rdi) == (CODE + 11, MMIO + 4, MMIO + 0x104)
        assert switch.calls == [(0, 4, 0x12345678)]
        guest.finish()


def test_a_kick_between_the_parts_of_an_access_waits_for_its_end() -> None:
    """Kicked while the first half of an access waits for its caller: the second half comes first, then the kick."""
    program = code64("""
        8b 83 fe 0f 00 00  ; mov eax, [rbx + 0xffe]
        f4                 ; hlt
    """)
    with Guest(program) as guest:
        first = guest.vcpu.run()
        assert first == MmioExit(MMIO + 0xFFE, 2, False)
        first.data = 0x1111
        guest.vcpu.kick()
        second = guest.vcpu.run()
        assert second == MmioExit(MMIO + 0x1000, 2, False)
        second.data = 0x2222
        assert guest.vcpu.run() == KickExit()
        assert guest.vcpu.registers.rax == 0x22221111
        assert guest.vcpu.run() == HltExit()


# Ends.


def test_a_halt_for_ever_stays_one() -> None:
    """HLT with interrupts off is `HltExit`, each time it is run on; RIP is behind the HLT."""
    with Guest(b"\xf4\xb8\x01\0\0\0\xf4") as guest:  # hlt; mov eax, 1; hlt
        assert [guest.vcpu.run() for _ in range(3)] == [HltExit()] * 3
        assert (guest.vcpu.registers.rip, guest.vcpu.registers.rax) == (CODE + 1, 0)
        guest.set(rip=CODE + 1)  # an assignment is a new start
        assert guest.vcpu.run() == HltExit()
        assert guest.vcpu.registers.rax == 1


def test_a_triple_fault_is_a_shutdown() -> None:
    """No gate for #UD, nor for the faults in its delivery."""
    with Guest(b"\x0f\x0b") as guest:  # ud2
        guest.memory.write(IDT, bytes(0x1000))
        assert isinstance(guest.machine.run(timeout=60), ShutdownExit)


def test_what_kvm_cannot_do_is_an_error_with_the_registers() -> None:
    """Code fetched from where nothing is: KVM's internal error, with its number and where the CPU was."""
    with Guest(b"\xff\xe3") as guest:  # jmp rbx
        with pytest.raises(
            EngineError, match=r"internal error \d .*; rip 0x10000000, cs 0x8 at 0x0, rax .*, cr3 0x1000"
        ):
            guest.machine.run(timeout=60)
        assert guest.vcpu.registers.rip == MMIO
        assert guest.vcpu.load(CODE, 2) == 0xE3FF


def test_registers_that_no_cpu_has_are_refused() -> None:
    """Long mode active without paging: the error shows the values that do not go together."""
    with Guest(b"\xf4") as guest, pytest.raises(EngineError, match=r"cr0 0x80010033, cr4 0x0, efer 0xd01"):
        guest.set(cr4=0)


def test_the_words_for_failures() -> None:
    """What cannot be provoked on good hardware, from the exit's data as the kernel leaves it."""
    run = abi.Run(exit_reason=ioctls.KVM_EXIT_FAIL_ENTRY)
    run.fail_entry.hardware_entry_failure_reason = 0x80000021
    assert failure.describe(run) == "the CPU refuses to enter the guest, reason 0x80000021"
    run = abi.Run(exit_reason=ioctls.KVM_EXIT_INTERNAL_ERROR)
    run.emulation_failure.suberror, run.emulation_failure.ndata = 1, 4
    run.emulation_failure.flags, run.emulation_failure.insn_size = 1, 2
    run.emulation_failure.insn_bytes[0], run.emulation_failure.insn_bytes[1] = 0x0F, 0x0B
    assert failure.describe(run) == "KVM's internal error 1 (an instruction it cannot emulate), 0f 0b"
    run = abi.Run(exit_reason=ioctls.KVM_EXIT_INTERNAL_ERROR)
    run.internal.suberror, run.internal.ndata, run.internal.data[0] = 3, 1, 0x80000B0E
    assert failure.describe(run) == "KVM's internal error 3 (an exit in the delivery of an event), data 0x80000b0e"
    assert failure.describe(abi.Run(exit_reason=99)) == "KVM's exit 99, which nothing asked for"


def test_a_closed_machine_says_so() -> None:
    """`run` after `close` is an error of one sentence, and a second `close` nothing."""
    guest = Guest(b"\xf4")
    guest.machine.close()
    guest.machine.close()
    with pytest.raises(EngineError, match="the machine is closed"):
        guest.vcpu.run()
