"""Hooks of a bank of registers: when they run, what they are given, and what they may refuse."""

from __future__ import annotations

from typing import Any

import pytest
from timer_bank import Timer, Word

from iobus.bus import Bus, DeviceError
from iobus.registers import (
    RC,
    RME,
    RW,
    RW0C,
    RW1,
    RW1C,
    RWME,
    Field,
    R,
    Register,
    RegisterBank,
    W,
    bits,
    on_read,
    on_write,
)

# Hooks.


def test_a_hook_for_each_element_is_given_the_indices() -> None:
    """The indices come first, the outer array's before the inner's; then the value, and the value before."""
    timer = Timer()
    timer.write(0x60, 4, 0x100)
    timer.write(0x48, 4, 7)
    assert timer.calls == [(2, 1, 0), (1, 1)]


class Hooked(RegisterBank):
    """Each kind of a hook, and what it was called with."""

    class Mixed(Register):
        KEPT = Field(bits(7, 0), RW)
        EVENTS = Field(bits(15, 8), RW1C)
        ACTIVE_LOW = Field(bits(23, 16), RW0C)
        GO = Field(bits(31, 24), W)

    MIXED = Mixed(0x0)
    FIFO = Word(0x4)

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @on_write(MIXED)
    def mixed(self, value: int, old: int) -> None:
        self.calls.append(("MIXED", value, old, self.MIXED.value))

    @on_write(MIXED.GO)
    def go(self, value: int) -> None:
        self.calls.append(("GO", value))

    @on_write(MIXED.KEPT)
    def kept(self) -> None:
        self.calls.append(("KEPT",))

    @on_read(FIFO)
    def pop(self) -> int:
        self.calls.append(("pop",))
        return len(self.calls)


def test_hooks_run_when_their_bits_are_covered() -> None:
    """The fields', the lowest first, then the register's, after the write has taken effect."""
    bank = Hooked()
    bank.MIXED.value = 0x00FF0F11
    bank.write(0, 4, 0x55_F0_01_22)
    assert bank.calls == [("KEPT",), ("GO", 0x55), ("MIXED", 0x55F00122, 0x00FF0F11, 0x00F00E22)]


def test_a_hook_is_given_uncovered_bits_as_what_leaves_them_alone() -> None:
    """Stored bits as they are, 0 where writing 1 acts, 1 where writing 0 acts: to write it all would change nothing."""
    bank = Hooked()
    bank.MIXED.value = 0x00FF0F11
    bank.write(3, 1, 0x55)
    assert bank.calls == [("GO", 0x55), ("MIXED", 0x55FF0011, 0x00FF0F11, 0x00FF0F11)]


def test_a_read_hook_gives_the_value() -> None:
    """It runs once an access, however wide, before the value is shown, and the register keeps what it returned."""
    bank = Hooked()
    assert bank.read(4, 4) == 1
    assert bank.FIFO.value == 1
    assert bank.read(0, 8) == 2 << 32
    assert bank.read(0, 4) == 0
    assert bank.calls == [("pop",), ("pop",)]


def test_a_read_hook_that_returns_none_leaves_the_value() -> None:
    """For reads with a side effect only."""

    class Bank(RegisterBank):
        class Reg(Register):
            COUNT = Field(bits(7, 0), RME)

        REG = Reg(0)

        @on_read(REG.COUNT)
        def counted(self) -> None:
            self.REG.COUNT += 1

    bank = Bank()
    assert [bank.read(0, 4), bank.read(0, 4), bank.read(1, 1), bank.read(0, 1)] == [1, 2, 0, 3]


@pytest.mark.parametrize("wrong", [0x100, -1, "1", 1.5])
def test_a_read_hook_that_returns_no_value_of_its_field_is_named(wrong: Any) -> None:
    """The bus's error names the device and the access, and the cause names the method, the value and the field."""

    class Bank(RegisterBank):
        class Reg(Register):
            COUNT = Field(bits(15, 8), R)

        REG = Reg(0)

        @on_read(REG.COUNT)
        def count(self) -> Any:
            return wrong

    bus = Bus()
    bus.attach(Bank(), 0x1000)
    with pytest.raises(
        DeviceError, match=r"Bank.*4-byte read.*count\(\) returned .* for REG .*from 0 to 0xff"
    ) as error:
        bus.read(0x1000, 4)
    assert isinstance(error.value.__cause__, ValueError)


def test_a_hook_may_refuse_a_write() -> None:
    """A lock: what the hook puts back is what the register holds."""

    class Lock(Register):
        LOCKED = Field(0, RW1)

    class Bank(RegisterBank):
        LOCK = Lock(0)
        LIMIT = Word(4)

        @on_write(LIMIT)
        def limit(self, value: int, old: int) -> None:
            if self.LOCK.LOCKED:
                self.LIMIT.value = old

    bank = Bank()
    bank.write(4, 4, 10)
    bank.write(0, 4, 1)
    bank.write(4, 4, 20)
    assert bank.LIMIT.value == 10


def test_a_write_of_any_kind_can_be_the_devices_to_act_on() -> None:
    """RWME: the register changes only as the hook says."""

    class Reg(Register):
        LEVEL = Field(bits(7, 0), RWME)

    class Bank(RegisterBank):
        REG = Reg(0)

        @on_write(REG.LEVEL)
        def level(self, value: int) -> None:
            self.REG.LEVEL = min(value, 9)

    bank = Bank()
    bank.write(0, 4, 200)
    assert bank.read(0, 4) == 9


def test_a_subclass_may_override_a_hooks_method() -> None:
    """As any method; and it may add registers and hooks of its own."""

    class Faster(Timer):
        EXTRA = Word(0x10)

        def start(self, value: int) -> None:
            self.calls.append(("faster", value))

        @on_write(EXTRA)
        def extra(self, value: int) -> None:
            self.calls.append(("extra", value))

    timer = Faster()
    timer.write(0, 4, 0x100)
    timer.write(0x10, 4, 3)
    assert timer.calls == [("faster", 1), ("extra", 3)]
    assert Timer().read(0x10, 4) == 0


def test_update_follows_each_change() -> None:
    """After a write, after a read that changes something, after reset and restore; not after a plain read."""
    timer = Timer()
    timer.read(0, 4)
    assert timer.updates == 0
    timer.write(0, 4, 1)
    assert timer.updates == 1
    timer.reset()
    assert timer.updates == 2
    timer.restore(timer.save())
    assert timer.updates == 3
    timer.write(0x80 + 0x7C, 4, 1)  # nobody's
    assert timer.updates == 3

    class Events(RegisterBank):
        class Reg(Register):
            EVENT = Field(0, RC)
            PLAIN = Field(8, R)

        REG = Reg(0)
        updates = 0

        def update(self) -> None:
            self.updates += 1

    events = Events()
    events.read(0, 4)
    events.read(1, 1)
    assert events.updates == 1
