"""Example devices that work elsewhere: on a thread, in asyncio, and one that waits in the middle of an access.

A device is called with the machine's lock held, so what takes long is done outside it. `call_soon` brings the result
back: from any thread, to the device, with the lock held. Whoever waits in an access waits with the lock given up.
"""

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable

from iobus.bus import Device
from iobus.pc.pc import Pc
from iobus.registers import RW, Field, R, Register, RegisterBank, W, on_write


class Number(Register, rest=RW):
    """All of it is one number."""


class Word(Register, rest=R):
    """All of it is one number."""


class Control(Register):
    START = Field(0, W, "Writing 1 starts the work")


class Status(Register):
    BUSY = Field(0, R)


class Hasher(RegisterBank, length=0x1000):
    """The SHA-256 of a piece of RAM, worked out on a thread; it interrupts when DIGEST has it."""

    SOURCE = Number(0x0)
    LENGTH = Number(0x4)
    CTRL = Control(0x8)
    STATUS = Status(0xC)
    DIGEST = Word.array(0x20, 8)

    def connect(self, pc: Pc) -> None:
        self.irq = pc.irq(10, "hasher")
        self.clock = pc.machine.clock
        self.dma = pc.machine.dma(self)

    @on_write(CTRL.START)
    def start(self, value: int) -> None:
        if value and not self.STATUS.BUSY:
            self.STATUS.BUSY = 1
            data = self.dma.read(self.SOURCE.value, self.LENGTH.value & 0xFFFF)
            threading.Thread(target=self.work, args=(data,), daemon=True).start()

    def work(self, data: bytes) -> None:
        digest = hashlib.sha256(data).digest()  # not in the machine's time, and without its lock
        self.clock.call_soon(lambda: self.done(digest))

    def done(self, digest: bytes) -> None:
        for index in range(8):
            self.DIGEST[index].value = int.from_bytes(digest[4 * index : 4 * index + 4], "big")
        self.STATUS.BUSY = 0
        self.irq.pulse()


class Fetcher(RegisterBank, length=0x1000):
    """The same with asyncio: `fetch` is any coroutine function, with a network behind it or whatever else."""

    CTRL = Control(0x0)
    STATUS = Status(0x4)
    RESULT = Word(0x8)

    def __init__(self, fetch: Callable[[], Awaitable[int]]) -> None:
        self.fetch = fetch
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def connect(self, pc: Pc) -> None:
        self.irq = pc.irq(11, "fetcher")
        self.clock = pc.machine.clock

    @on_write(CTRL.START)
    def start(self, value: int) -> None:
        if value and not self.STATUS.BUSY:
            self.STATUS.BUSY = 1
            asyncio.run_coroutine_threadsafe(self.work(), self.loop)

    async def work(self) -> None:
        result = await self.fetch()
        self.clock.call_soon(lambda: self.done(result))

    def done(self, result: int) -> None:
        self.RESULT.value = result
        self.STATUS.BUSY = 0
        self.irq.pulse()


class Mailbox(Device):
    """A read waits until `post` has a value for it: only the vCPU that reads stands still meanwhile."""

    length = 4

    def connect(self, pc: Pc) -> None:
        self.posted = threading.Condition(pc.machine.lock)
        self.values: list[int] = []

    def post(self, value: int) -> None:
        """Give the next read its value. From any thread."""
        with self.posted:
            self.values.append(value)
            self.posted.notify()

    def read(self, offset: int, size: int) -> int:
        # Waiting gives up the machine's lock: other vCPUs, timers and devices go on.
        if not self.posted.wait_for(lambda: self.values, timeout=5):
            return 0
        return self.values.pop(0) & (1 << 8 * size) - 1
