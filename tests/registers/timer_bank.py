"""A timer with channels, the bank of registers that the tests of banks use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iobus.irq import Line, Pin
from iobus.registers import (
    RW,
    RW1C,
    BankState,
    Field,
    Register,
    RegisterBank,
    RegisterGroup,
    Values,
    W,
    bits,
    on_write,
)


class Mode(Values):
    ONE_SHOT = 0, "Fires once"
    PERIODIC = 1


class Control(Register):
    """What the timer does."""

    ENABLE = Field(0, RW, "Runs the timer")
    MODE = Field(bits(2, 1), RW, values=Mode, reset=Mode.PERIODIC)
    START = Field(8, W)


class Status(Register):
    DONE = Field(0, RW1C)
    ERROR = Field(9, RW1C)


class Word(Register, rest=RW):
    pass


class Channel(RegisterGroup):
    CTRL = Control(0x0)
    DATA = Word.array(0x4, 3)


@dataclass
class TimerState(BankState):
    starts: int = 0


class Timer(RegisterBank[TimerState], length=0x100):
    CTRL = Control(0x0)
    STATUS = Status(0x4)
    CHANNEL = Channel.array(0x20, 4, stride=0x20)

    def __init__(self, irq: Line | None = None) -> None:
        self.irq = irq or Pin().line()
        self.updates = 0
        self.calls: list[tuple[Any, ...]] = []

    def update(self) -> None:
        self.updates += 1
        self.irq.set(bool(self.CTRL.ENABLE and self.STATUS.DONE))

    @on_write(CTRL.START)
    def start(self, value: int) -> None:
        if value:
            self.STATUS.DONE = 1
            self.state.starts += 1

    @on_write(CHANNEL.each.CTRL.START)
    def start_channel(self, index: int, value: int, old: int) -> None:
        self.calls.append((index, value, old))

    @on_write(CHANNEL.each.DATA.each)
    def data(self, channel: int, index: int) -> None:
        self.calls.append((channel, index))
