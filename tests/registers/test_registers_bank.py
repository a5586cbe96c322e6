"""A declared device as its author and its guest see it: accesses, hooks, arrays, groups, state, names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from timer_bank import Mode, Timer, TimerState, Word

from iobus.bus import Bus
from iobus.machine import Machine
from iobus.registers import (
    RC,
    RES1,
    RW,
    RW1,
    RWME,
    WO,
    Field,
    Register,
    RegisterBank,
    W,
    bits,
    on_write,
)
from iobus.state import StateError


def test_a_device_of_registers_interrupts() -> None:
    """Written START sets DONE, DONE and ENABLE raise the line, writing 1 to DONE lowers it."""
    timer, bus = Timer(), Bus()
    bus.attach(timer, 0x1000)
    bus.write(0x1000, 4, 0x101)
    assert timer.irq.level
    assert bus.read(0x1004, 4) == 1
    bus.write(0x1004, 4, 1)
    assert not timer.irq.level
    assert bus.read(0x1004, 4) == 0


def test_a_field_of_a_device_is_an_int() -> None:
    """Fields are read and assigned by name, in arrays and groups as well, and are the bits of the register."""
    timer = Timer()
    assert (timer.CTRL.ENABLE, timer.CTRL.MODE, timer.CTRL.value) == (0, Mode.PERIODIC, 2)
    timer.CTRL.MODE = 3
    timer.CHANNEL[2].CTRL.ENABLE = True
    timer.CHANNEL[-1].DATA[1].value = 0x12345678
    assert timer.CTRL.value == 6
    assert timer.read(0x60, 4) == 3
    assert timer.read(0x88, 4) == 0x12345678
    assert [channel.CTRL.ENABLE for channel in timer.CHANNEL] == [0, 0, 1, 0]
    assert len(timer.CHANNEL) == 4


def test_what_does_not_fit_a_field_is_refused() -> None:
    """The error names the register, the field, the value and what it takes; the register is as it was."""
    timer = Timer()
    with pytest.raises(ValueError, match=r"CTRL.MODE = 4: a field of 2 bits takes 0 to 3"):
        timer.CTRL.MODE = 4
    with pytest.raises(ValueError, match=r"CHANNEL\[1\].CTRL.ENABLE = -1: a field of 1 bit takes 0 to 1"):
        timer.CHANNEL[1].CTRL.ENABLE = -1
    with pytest.raises(ValueError, match=r"CTRL.START = 1: it is W and keeps nothing"):
        timer.CTRL.START = 1
    with pytest.raises(ValueError, match=r"STATUS.value = 0x100000000: the register has 32 bits"):
        timer.STATUS.value = 1 << 32
    with pytest.raises(IndexError, match=r"CHANNEL\[4\]: it has 4 elements"):
        timer.CHANNEL[4]
    with pytest.raises(AttributeError, match="ENABEL"):
        timer.CTRL.ENABEL = 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"Timer.CTRL is declared.*assign to CTRL.value or to a field"):
        timer.CTRL = 5  # type: ignore[assignment]
    assert timer.state == Timer().state


def test_assigning_the_whole_register_leaves_bits_that_keep_nothing() -> None:
    """Reserved bits stay what they always are, and an event is not one because a register was assigned to."""

    class Reg(Register, width=16, rest=RES1):
        A = Field(bits(3, 0), RW)
        GO = Field(4, W)

    class Bank(RegisterBank):
        REG = Reg(0)

    bank = Bank()
    assert bank.REG.value == 0xFFE0
    bank.REG.value = 0x13
    assert bank.REG.value == 0xFFE3
    assert bank.read(0, 2) == 0xFFE3


def test_a_device_may_store_what_a_guest_wrote_reserved_bits_and_all() -> None:
    """No value that a guest writes makes a hook raise which assigns it to a register, its reserved bits included."""

    class Command(Register, rest=RES1):
        GO = Field(0, W)
        ARGUMENT = Field(bits(15, 8), RWME)

    class Bank(RegisterBank):
        COMMAND = Command(0)

        @on_write(COMMAND)
        def command(self, value: int) -> None:
            self.COMMAND.value = value

    bank = Bank()
    for value, kept in ((0, 0xFFFF00FE), (0xFFFFFFFF, 0xFFFFFFFE), (0x00001201, 0xFFFF12FE)):
        bank.write(0, 4, value)
        assert bank.COMMAND.value == bank.read(0, 4) == kept


# Accesses that are narrower, wider, or beside.


class Halves(RegisterBank, length=0x20):
    """Two 32-bit registers behind each other, and a 64-bit one."""

    LOW = Word(0x0)
    HIGH = Word(0x4)

    class Wide(Register, width=64, rest=RW):
        pass

    WIDE = Wide(0x8)

    def __init__(self) -> None:
        self.touched: list[str] = []

    @on_write(LOW)
    def low(self) -> None:
        self.touched.append("LOW")

    @on_write(HIGH)
    def high(self) -> None:
        self.touched.append("HIGH")

    def update(self) -> None:
        self.touched.append("update")


def test_a_wide_access_touches_each_register_once() -> None:
    """A 64-bit write of two 32-bit registers writes each once, the lower first, and `update` comes once, at the end."""
    bank = Halves()
    bank.write(0, 8, 0x1111111122222222)
    assert bank.touched == ["LOW", "HIGH", "update"]
    assert (bank.LOW.value, bank.HIGH.value) == (0x22222222, 0x11111111)
    assert bank.read(0, 8) == 0x1111111122222222


def test_an_access_may_begin_inside_of_a_register() -> None:
    """An unaligned access takes the bytes it covers out of each register, and leaves the others."""
    bank = Halves()
    bank.write(2, 4, 0xAABBCCDD)
    assert (bank.LOW.value, bank.HIGH.value) == (0xCCDD0000, 0x0000AABB)
    assert bank.read(2, 4) == 0xAABBCCDD
    bank.write(0xB, 2, 0xBEEF)
    assert bank.WIDE.value == 0xBEEF000000


@pytest.mark.parametrize(("unmapped", "value"), [("zero", 0), ("ones", 0xFFFF), ("decline", NotImplemented)])
def test_bytes_without_a_register(unmapped: Any, value: Any) -> None:
    """They read 0 and ignore writes, or read as all ones, or are not claimed: as the class says."""

    class Half(Register, width=16, rest=RW):
        pass

    class Bank(RegisterBank, length=8, unmapped=unmapped):
        HALF = Half(0)

    bank = Bank()
    assert bank.read(4, 2) == value
    bank.write(4, 2, 0x1234)
    assert bank.read(4, 2) == value
    bank.write(0, 2, 0x1234)
    # Together with a register's: the register's bytes are there, or the whole access is declined.
    assert bank.read(0, 4) == (value if value is NotImplemented else value << 16 | 0x1234)


def test_a_declined_access_touches_no_register() -> None:
    """What is declined is declined before anything is cleared, stored or called."""

    class Event(Register, width=16, rest=RC):
        pass

    class Bank(RegisterBank, length=8, unmapped="decline"):
        EVENT = Event(0, reset=0x1234)

        @on_write("EVENT2")
        def written(self) -> None:
            raise AssertionError

        class Half(Register, width=16, rest=RW):
            pass

        EVENT2 = Half(2, reset=5)

    bank = Bank()
    assert bank.read(0, 8) is NotImplemented
    assert bank.write(0, 8, (1 << 64) - 1) is NotImplemented
    assert bank.read(0, 4) == 0x00051234


def test_a_register_for_reads_and_one_for_writes_share_an_address() -> None:
    """RBR and THR of a UART: a read gives the one, a write goes to the other, neither touches its pair."""

    class Received(Register, width=8):
        DATA = Field(bits(7, 0), RC)

    class Transmit(Register, width=8):
        DATA = Field(bits(7, 0), WO)

    class Bank(RegisterBank):
        RBR = Received(0)
        THR = Transmit(0)

    bank = Bank()
    bank.RBR.DATA = 0x41
    bank.write(0, 1, 0x42)
    assert (bank.RBR.DATA, bank.THR.DATA) == (0x41, 0x42)
    assert bank.read(0, 1) == 0x41
    assert (bank.RBR.DATA, bank.THR.DATA) == (0, 0x42)
    assert [part.register for part in bank.describe(0, 1, 0, False)] == ["RBR"]
    assert [part.register for part in bank.describe(0, 1, 0, True)] == ["THR"]


# State.


def test_the_state_is_saved_by_name_and_restored() -> None:
    """Plain data, JSON even, with the device's own state beside; a fresh device restored from it is equal."""
    timer = Timer()
    timer.write(0, 4, 0x101)
    timer.CHANNEL[1].DATA[2].value = 7
    saved = json.loads(json.dumps(timer.save()))
    assert saved["registers"]["CTRL"] == 1
    assert saved["registers"]["CHANNEL[1].DATA[2]"] == 7
    assert saved["starts"] == 1
    other = Timer()
    assert other.state != timer.state
    other.restore(saved)
    assert other.state == timer.state
    assert other.save() == saved
    assert other.irq.level, "outputs follow the restored state"
    saved["registers"]["CTRL"] = 0
    assert other.CTRL.value == 1, "nothing is shared with what was saved"


BAD_STATES: list[tuple[Any, str]] = [
    (5, r"Timer registers: got 5, want a dict of their names"),
    ({"CTRL": 0}, r"Timer registers: 'CHANNEL\[0\].CTRL' is missing"),
    ({"EXTRA": 0}, r"Timer registers: .* is (missing|unknown)"),
    ("CTRL=-1", r"Timer registers: CTRL = -1; want an int of 32 bits"),
    ("CTRL=True", r"Timer registers: CTRL = True; want an int of 32 bits"),
    ("CTRL=1<<32", r"Timer registers: CTRL = 4294967296; want an int of 32 bits"),
    ("CTRL=0x100", r"Timer registers: CTRL = 0x100; its bits 0x100 are W and always the same"),
    ("CTRL=0x80000000", r"Timer registers: CTRL = 0x80000000; its bits 0xfffffe[f0]8 are RES0 and always the same"),
]


@pytest.mark.parametrize(("change", "message"), BAD_STATES)
def test_data_that_does_not_fit_is_refused(change: Any, message: str) -> None:
    """The error names the register, the value and what would be right; the device is as it was."""
    timer = Timer()
    timer.write(0, 4, 1)
    plain = timer.save()
    if isinstance(change, str):
        name, _, value = change.partition("=")
        plain["registers"][name] = eval(value)
    else:
        plain["registers"] = change
    before = timer.save()
    with pytest.raises(StateError, match=message):
        timer.restore(plain)
    assert timer.save() == before


def test_what_was_written_once_is_restored() -> None:
    """The bits that were written once are part of the state, under a name of their own, and only theirs."""

    class Reg(Register):
        F = Field(bits(3, 0), RW1)

    class Bank(RegisterBank):
        REG = Reg(0)

    bank, other = Bank(), Bank()
    bank.write(0, 4, 5)
    saved = bank.save()
    assert saved["registers"] == {"REG": 5, "REG.written": 0xF}
    other.restore(saved)
    other.write(0, 4, 9)
    assert other.REG.F == 5
    saved["registers"]["REG.written"] = 0x10
    with pytest.raises(StateError, match=r"REG.written = 16; want an int with bits of 0xf"):
        other.restore(saved)


def test_a_device_may_set_its_whole_state() -> None:
    """A new record gets the registers' reset values; one of another device is refused."""
    timer = Timer()
    timer.write(0, 4, 0x101)
    timer.state = TimerState(starts=7)
    assert (timer.CTRL.value, timer.state.starts) == (2, 7)
    with pytest.raises(ValueError, match=r"Timer.state: it has 1 registers, the device 18"):
        timer.state = TimerState([5])
    with pytest.raises(TypeError, match=r"Timer.state = None: it takes a TimerState"):
        timer.state = None  # type: ignore[assignment]


def test_two_devices_of_a_class_share_nothing() -> None:
    """What one remembers the other does not see."""
    one, other = Timer(), Timer()
    one.write(0, 4, 0x101)
    assert other.save() == Timer().save()
    assert not other.irq.level


def test_a_machine_resets_it() -> None:
    """The bank is a device as any other: found, reset with the machine, and its accesses counted as claimed."""
    with Machine() as machine:
        timer = Timer()
        machine.mmio.attach(timer, 0x1000)
        machine.mmio.write(0x1000, 4, 0x101)
        machine.reset()
        assert timer.save() == Timer().save()
        assert not timer.irq.level


# Names.


def test_describe_names_registers_fields_and_values() -> None:
    """The register, its fields, and the meaning of a value that has one; a write's as a read's."""
    (ctrl, status) = Timer.describe(0, 8, 0x00000201_00000103, True)
    assert ctrl == ("CTRL", 0x103, 0xFFFFFFFF, (("ENABLE", 1, ""), ("MODE", 1, "PERIODIC"), ("START", 1, "")))
    assert str(ctrl) == "CTRL 0x103 (ENABLE=1 MODE=PERIODIC START=1)"
    assert str(status) == "STATUS 0x201 (DONE=1 ERROR=1)"
    assert [part.register for part in Timer.describe(0x60, 4, 0, False)] == ["CHANNEL[2].CTRL"]


def test_describe_has_no_side_effects() -> None:
    """It can be asked at any time: neither the state nor a hook is touched."""
    timer = Timer()
    before = timer.save()
    timer.describe(0, 8, (1 << 64) - 1, True)
    timer.describe(0, 8, (1 << 64) - 1, False)
    assert timer.save() == before
    assert timer.updates == 0


def test_describe_says_which_bits_of_a_field() -> None:
    """Of a field that the access covers in part, the bits are named; its value then has no meaning."""

    class Reg(Register):
        DIVISOR = Field(bits(27, 4), RW)

    class Bank(RegisterBank):
        REG = Reg(0)

    assert str(Bank.describe(1, 2, 0xABCD, True)[0]) == "REG 0xabcd00 (DIVISOR[19:4]=0xabcd)"


def test_describe_shows_what_is_written_where_no_field_is() -> None:
    """Bits that a driver has no business in are named when they are not what they always are, and only then."""
    assert str(Timer.describe(4, 4, 0x80000001, True)[0]) == "STATUS 0x80000001 (DONE=1 ERROR=0 [31:10]=0x200000)"
    assert str(Timer.describe(8, 4, 0x5, True)[0]) == "(no register) 0x5"


def test_a_device_prints_by_name() -> None:
    """A line for each register with its offset, value and fields; a register alone in angle brackets."""
    timer = Timer()
    timer.write(0, 4, 1)
    lines = str(timer).splitlines()
    assert lines[0] == "Timer"
    assert lines[1].split() == ["0x000", "CTRL", "0x00000001", "ENABLE=1", "MODE=ONE_SHOT", "START=0"]
    assert lines[-1].split() == ["0x08c", "CHANNEL[3].DATA[2]", "0x00000000"]
    assert repr(timer.CTRL) == "<CTRL 0x00000001 ENABLE=1 MODE=ONE_SHOT START=0>"
    assert repr(timer.CHANNEL[3].DATA[0]) == "<CHANNEL[3].DATA[0] 0x00000000>"


def test_the_map_is_plain_data() -> None:
    """`map` has what was declared, the docs included."""
    bank = Timer.map
    assert (bank.name, bank.length, bank.unmapped) == ("Timer", 0x100, "zero")
    assert [member.name for member in bank.members] == ["CTRL", "STATUS", "CHANNEL"]
    ctrl = bank.members[0]
    assert ctrl.doc == "What the timer does."
    assert ctrl.fields[0].doc == "Runs the timer"  # type: ignore[union-attr]
    assert [(item.value, item.name, item.doc) for item in ctrl.fields[1].values] == [  # type: ignore[union-attr]
        (0, "ONE_SHOT", "Fires once"),
        (1, "PERIODIC", ""),
    ]


def test_describe_shows_a_reserved_one_that_is_written_as_zero() -> None:
    """What reserved-1 bits always are is 1: a driver that writes 0 there is shown to."""

    class Reg(Register, width=8, rest=RES1):
        A = Field(bits(3, 0), RW)

    class Bank(RegisterBank):
        REG = Reg(0)

    assert str(Bank.describe(0, 1, 0x05, True)[0]) == "REG 0x5 (A=5 [7:4]=0)"
    assert str(Bank.describe(0, 1, 0xF5, True)[0]) == "REG 0xf5 (A=5)"
