"""The bus beside a plain reference: whatever is registered, moved and accessed, no difference may show.

A random program registers devices on a machine's bus and on two vCPUs' buses (ranges that overlap, priorities,
`in_range` callbacks with holes and with a base that moves by itself, all mixtures of sizes, byte order), moves,
disables and detaches them, and accesses addresses from either vCPU. Devices decline, raise, answer nonsense, and
change the registrations or make further accesses from inside their own. It runs once through `VCPU` and `Bus`, once
through `linear_bus.py`, which searches a list from its front as the seed does; then what the devices saw, in which
order, and every result are compared.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from linear_bus import LinearBus, LinearError

from iobus import path
from iobus.bus import SIZES, Bus, DeviceError
from iobus.machine import Machine

PORTS = 0x10000


@dataclasses.dataclass(frozen=True)
class Script:
    """What one device does. Offsets are taken modulo small numbers, so that one device behaves in several ways."""

    declines_at: int | None = None
    """Declines where `offset % 3` is this."""
    misbehaves_at: int | None = None
    """Raises, or answers nonsense, where `offset % 5` is this."""
    misbehaviour: str = "raise"
    action: Op | None = None
    """What it does to the machine from inside its accesses."""
    declines_after_action: bool = False
    hole: int = 0
    """`in_range`: does not claim addresses where `address // 4 % 4` is less than this."""
    low: int = 0
    """`in_range`: claims nothing below this, until a write moves it."""
    moves_by_itself: bool = False
    fails_in_range: bool = False


@dataclasses.dataclass(frozen=True)
class Attach:
    bus: int
    """0: the machine's, 1 and 2: the vCPUs'."""
    base: int | None
    length: int
    priority: int
    sizes: tuple[int, ...]
    implements: tuple[int, ...] | None
    endian: str
    script: Script


@dataclasses.dataclass(frozen=True)
class Change:
    verb: str
    region: int
    base: int = 0


@dataclasses.dataclass(frozen=True)
class Access:
    cpu: int
    size: int
    address: int = 0
    region: int | None = None
    """Where given: `address` counts from this region's base."""
    value: int | None = None


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Makes an earlier access of the program again: what the bus remembers only shows the second time."""

    back: int


@dataclasses.dataclass(frozen=True)
class Observe:
    on: bool


Op = Attach | Change | Access | Observe | Repeat


class World:
    """One side of the comparison: three buses, what is attached to them, and the log of all that happens."""

    def __init__(self, buses: list[Any], space: int) -> None:
        self.buses = buses
        self.space = space
        self.regions: list[Any] = []
        self.detached: set[int] = set()
        self.log: list[tuple[Any, ...]] = []
        self.past: list[tuple[int, int, int, int | None]] = []
        self.depth = 0

    def access(self, cpu: int, address: int, size: int, value: int | None) -> Any:
        raise NotImplementedError

    def observe(self, on: bool) -> None:
        raise NotImplementedError

    def run(self, op: Op) -> None:
        if isinstance(op, Attach):
            self.attach(op)
        elif isinstance(op, Observe):
            self.observe(op.on)
        elif self.regions and isinstance(op, Change):
            self.change(op)
        elif isinstance(op, Access):
            address = op.address
            if op.region is not None and self.regions:
                address += self.regions[op.region % len(self.regions)].base
            value = None if op.value is None else op.value % 256**op.size
            self.past.append((op.cpu, max(0, address), op.size, value))
            self.answer(*self.past[-1])
        elif isinstance(op, Repeat) and self.past:
            self.answer(*self.past[-1 - op.back % len(self.past)])

    def answer(self, cpu: int, address: int, size: int, value: int | None) -> None:
        try:
            result = self.access(cpu, address, size, value)
        except (DeviceError, LinearError) as exc:
            nonsense = exc.__cause__ is None or isinstance(exc.__cause__, ValueError)
            cause = "no value of its size" if nonsense else type(exc.__cause__).__name__
            result = ("error", exc.region, exc.address, exc.offset, exc.size, exc.value, cause)
        self.log.append(("result", result))

    def attach(self, op: Attach) -> None:
        device = Scripted(self, len(self.regions), op.script)
        options: dict[str, Any] = {
            "name": str(len(self.regions)),
            "priority": op.priority,
            "sizes": op.sizes,
            "implements": op.implements,
            "endian": op.endian,
        }
        if op.base is None:
            region = self.buses[op.bus].attach(device, **options)
        else:
            unit = min(op.implements or op.sizes)
            length = max(unit, op.length // unit * unit)
            region = self.buses[op.bus].attach(device, min(op.base, self.space - length), length, **options)
        self.regions.append(region)

    def change(self, op: Change) -> None:
        index = op.region % len(self.regions)
        region = self.regions[index]
        if index in self.detached:
            return
        if op.verb == "detach":
            self.detached.add(index)
            region.detach()
        elif op.verb == "move":
            if region.length < self.space:
                region.move(min(op.base, self.space - region.length))
        else:
            region.enable(op.verb == "enable")


class BusWorld(World):
    def __init__(self, ports: bool) -> None:
        machine = Machine(cpus=2)
        self.machine, self.ports = machine, ports
        self.observers: dict[int, path.Observer] = {}
        buses = [machine.pio, *(vcpu.pio for vcpu in machine.vcpus)]
        if not ports:
            buses = [machine.mmio, *(vcpu.mmio for vcpu in machine.vcpus)]
        super().__init__(buses, buses[0].size)

    def access(self, cpu: int, address: int, size: int, value: int | None) -> Any:
        vcpu = self.machine.vcpus[cpu]
        if value is None:
            return (vcpu.pio_path.read if self.ports else vcpu.mmio_path.read)(address, size)
        return (vcpu.pio_path.write if self.ports else vcpu.mmio_path.write)(address, size, value)

    def observe(self, on: bool) -> None:
        for cpu, vcpu in enumerate(self.machine.vcpus):
            way = vcpu.pio_path if self.ports else vcpu.mmio_path
            if on and cpu not in self.observers:
                self.observers[cpu] = self.observer(cpu)
                way.observe(self.observers[cpu])
            elif not on and cpu in self.observers:
                way.ignore(self.observers.pop(cpu))

    def observer(self, cpu: int) -> path.Observer:
        def observe(access: path.Access) -> None:
            region = access.region and access.region.name
            self.log.append(("seen", cpu, region, access.address, access.size, access.is_write, access.value))

        return observe


class LinearWorld(World):
    def __init__(self, space: int) -> None:
        super().__init__([LinearBus(space) for _ in range(3)], space)
        self.observing = False

    def access(self, cpu: int, address: int, size: int, value: int | None) -> Any:
        observing = self.observing
        for bus in (self.buses[1 + cpu], self.buses[0]):
            result = bus.access(address, size, value)
            if result is not NotImplemented:
                name = bus.last.name
                break
        else:
            result, name = 256**size - 1 if value is None else None, None
        if observing:
            seen = result if value is None else value
            self.log.append(("seen", cpu, name, address, size, value is not None, seen))
        return result

    def observe(self, on: bool) -> None:
        self.observing = on


class Scripted:
    """A device that follows its script and writes all it sees in its world's log."""

    def __init__(self, world: World, tag: int, script: Script) -> None:
        self.world, self.tag, self.script = world, tag, script
        self.low = script.low
        self.calls = 0

    def in_range(self, address: int, size: int) -> bool:
        self.world.log.append(("asked", self.tag, address, size))
        if self.script.fails_in_range and address % 7 == 3:
            raise OSError("in_range failed")
        return address >= self.low and all(byte // 4 % 4 >= self.script.hole for byte in range(address, address + size))

    def read(self, offset: int, size: int) -> Any:
        return self.called("read", offset, size, None)

    def write(self, offset: int, size: int, value: int) -> Any:
        return self.called("write", offset, size, value)

    def called(self, verb: str, offset: int, size: int, value: int | None) -> Any:
        script, world = self.script, self.world
        world.log.append((verb, self.tag, offset, size, value))
        self.calls += 1
        answer: Any = None if value is not None else (self.tag * 37 + offset * 11 + self.calls * 101) % 256**size
        if script.moves_by_itself and value is not None:
            self.low = value % 64
        if script.action is not None and world.depth < 2:
            world.depth += 1
            world.run(script.action)
            world.depth -= 1
            if script.declines_after_action:
                return NotImplemented
        if script.declines_at == offset % 3:
            return NotImplemented
        if script.misbehaves_at == offset % 5:
            if script.misbehaviour == "raise":
                raise LookupError(offset)
            if value is None:
                answer = {"big": 256**size, "negative": -1, "text": "1", "nothing": None}[script.misbehaviour]
        return answer


def near_powers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.builds(lambda power, delta: max(1, (1 << power) + delta), st.integers(low, high), st.integers(-5, 5))


addresses = st.integers(0, 24) | st.sampled_from([0, 8, 16]) | near_powers(5, 15)
some_sizes = st.lists(st.sampled_from(SIZES), min_size=1, max_size=4).map(tuple)
region_index = st.integers(0, 7)
values = st.none() | st.none() | st.integers(0, 2**64 - 1)
changes = st.builds(Change, st.sampled_from(["move", "move", "enable", "disable", "detach"]), region_index, addresses)
accesses = st.one_of(
    st.builds(Access, st.integers(0, 1), st.sampled_from(SIZES), addresses, value=values),
    *[
        st.builds(Access, st.integers(0, 1), st.sampled_from(SIZES), offset, region_index, values)
        for offset in (st.sampled_from([0, 4, 8]), st.integers(-3, 20))
    ],
)


def attachments(script: st.SearchStrategy[Script]) -> st.SearchStrategy[Attach]:
    return st.builds(
        Attach,
        bus=st.sampled_from([0, 0, 1, 2]),
        base=addresses | addresses | st.none(),
        length=st.integers(1, 24) | near_powers(2, 12),
        priority=st.integers(-1, 1),
        sizes=st.just(SIZES) | some_sizes,
        implements=st.none() | some_sizes,
        endian=st.sampled_from(["little", "big"]),
        script=script,
    )


plain_scripts = st.builds(Script, declines_at=st.none() | st.integers(0, 2))
scripts = st.just(Script()) | st.builds(
    Script,
    declines_at=st.none() | st.integers(0, 2),
    misbehaves_at=st.none() | st.integers(0, 4),
    misbehaviour=st.sampled_from(["raise", "big", "negative", "text", "nothing"]),
    action=st.none() | changes | accesses | attachments(plain_scripts),
    declines_after_action=st.booleans(),
    hole=st.integers(0, 2),
    low=st.integers(0, 32),
    moves_by_itself=st.booleans(),
    fails_in_range=st.booleans(),
)
repeats = st.builds(Repeat, st.integers(0, 3))
programs = st.tuples(
    st.lists(attachments(scripts), min_size=2, max_size=6),
    st.lists(
        accesses | repeats | repeats | changes | attachments(scripts) | st.builds(Observe, st.booleans()),
        min_size=15,
        max_size=50,
    ),
).map(lambda parts: [*parts[0], *parts[1]])

ANYWHERE = {"priority": 0, "sizes": SIZES, "implements": None, "endian": "little"}


@settings(max_examples=300, deadline=None)
@given(program=programs, ports=st.booleans())
@example(
    # An in_range callback ahead of a range says no once, and yes the next time: it must be asked again.
    program=[
        Attach(0, None, 0, script=Script(low=32, moves_by_itself=True), **ANYWHERE),
        Attach(0, 0, 64, script=Script(), **ANYWHERE),
        Access(0, 4, 16),
        Access(0, 4, 40, value=0),
        Access(0, 4, 16),
    ],
    ports=False,
)
@example(
    # A device detaches the one behind it and declines: who is asked next must not depend on earlier lookups.
    program=[
        Attach(0, 0, 16, script=Script(action=Change("detach", 1), declines_after_action=True), **ANYWHERE),
        Attach(0, 0, 16, script=Script(), **ANYWHERE),
        Attach(0, 0, 16, script=Script(), **ANYWHERE),
        Access(0, 4, 0),
        Access(0, 4, 0),
    ],
    ports=True,
)
def test_bus_equals_linear_search(program: list[Op], ports: bool) -> None:
    """Through the bus and through a linear search: the same results, devices, offsets and order."""
    bus_world = BusWorld(ports)
    linear_world = LinearWorld(bus_world.space)
    for op in program:
        for world in (bus_world, linear_world):
            world.run(op)
        assert bus_world.log == linear_world.log, op
        shown = [[(region.name, region.base, region.enabled) for region in bus.regions] for bus in bus_world.buses]
        plain = [[(region.name, region.base, region.enabled) for region in bus.regions] for bus in linear_world.buses]
        assert shown == plain, op


@settings(max_examples=60, deadline=None)
@given(
    claims=st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 40) | near_powers(3, 8), st.integers(-2, 2)),
        min_size=1,
        max_size=40,
    ),
    moves=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 300)), max_size=10),
)
def test_every_address_finds_what_a_linear_search_finds(
    claims: list[tuple[int, int, int]], moves: list[tuple[int, int]]
) -> None:
    """`find` gives the region that a linear search over (priority, registration) meets first, at every address."""

    class Silent:
        def read(self, offset: int, size: int) -> int:
            return 0

        def write(self, offset: int, size: int, value: int) -> None:
            pass

    bus = Bus(4096)
    regions = [bus.attach(Silent(), base, length, priority=priority) for base, length, priority in claims]
    for index, base in moves:
        regions[index % len(regions)].move(base)
    ordered = sorted(regions, key=lambda region: -region.priority)
    for address in range(620):
        for size in SIZES:
            first = next(
                (r for r in ordered if r.base <= address and address + size <= r.base + r.length),
                None,
            )
            assert bus.find(address, size) is first, (address, size)
