"""An example device with a timer: a counter of microseconds, and an alarm that interrupts when it gets there.

The counter is computed from the clock when it is read: nothing ticks, and nothing drifts.
"""

from iobus.irq import Pin
from iobus.pc.pc import Pc
from iobus.registers import RW, RW1C, Field, R, Register, RegisterBank, on_read, on_write

US = 1000  # ns


class Counter(Register, rest=R):
    """Microseconds since power-on, modulo 2**32."""


class Time(Register, rest=RW):
    """A value of the counter."""


class Control(Register):
    ENABLE = Field(0, RW, "The alarm is set")


class Status(Register):
    RANG = Field(0, RW1C, "The counter got to ALARM")


class Alarm(RegisterBank, length=0x1000):
    COUNTER = Counter(0x0)
    ALARM = Time(0x4)
    CTRL = Control(0x8)
    STATUS = Status(0xC)

    def __init__(self) -> None:
        self.irq = Pin().line()

    def connect(self, pc: Pc) -> None:
        self.irq = pc.irq(10, "alarm")
        self.clock = pc.machine.clock
        self.timer = self.clock.timer(self.ring, "alarm")

    @on_read(COUNTER)
    def count(self) -> int:
        return self.clock.now() // US & 0xFFFFFFFF

    @on_write(ALARM)
    @on_write(CTRL)
    def set(self, old: int) -> None:
        self.timer.cancel()
        if self.CTRL.ENABLE:
            now = self.clock.now() // US
            left = (self.ALARM.value - now) % (1 << 32)  # the next time the counter has this value
            self.timer.arm((now + left) * US)

    def ring(self) -> None:
        self.CTRL.ENABLE = 0
        self.STATUS.RANG = 1
        self.update()

    def update(self) -> None:
        self.irq.set(self.STATUS.RANG == 1)
