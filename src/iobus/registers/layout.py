"""How a bank's accesses are carried out: for each offset and size a ready function, made when first used.

Stands on `entries.py`; `bank.py` holds one `Layout` a class. What an access touches, with which masks and
hooks, follows from the class alone. So it is worked out once, and an access is a look into a dictionary
and a call of what it holds.

Rules that hold for every access:

- A register that an access touches is touched once, the one at the lowest address first.
- Bits that the access does not cover are neither read nor written, nor cleared or set by either.
- Bytes that no register has give what `unmapped` says; with "decline" the access is declined before any
  register is touched.
- A write's bits take effect together, then its hooks run, the fields' (the lowest first) before the
  register's. When all registers of the access have been touched the bank's `update` is called once.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from iobus.registers.entries import Placed, RegisterEntry, RegisterMap, placed
from iobus.registers.kinds import RES1, Access, OnRead, OnWrite

if TYPE_CHECKING:
    from iobus.registers.bank import RegisterBank

Reader = Callable[["RegisterBank[Any]"], Any]
Writer = Callable[["RegisterBank[Any]", int], Any]

_PLANS_LIMIT: Final = 1 << 14  # a guest can access any offset: bound what its accesses make us keep

# What a write makes of a bit: for (old, written) = (0, 0), (0, 1), (1, 0), (1, 1).
_TRUTH: Final = {
    OnWrite.IGNORED: (0, 0, 1, 1),
    OnWrite.STORES: (0, 1, 0, 1),
    OnWrite.ONCE: (0, 1, 0, 1),  # where the bit was not written before
    OnWrite.ONE_CLEARS: (0, 0, 1, 0),
    OnWrite.ONE_SETS: (0, 1, 1, 1),
    OnWrite.ONE_TOGGLES: (0, 1, 1, 0),
    OnWrite.ZERO_CLEARS: (0, 0, 0, 1),
    OnWrite.ZERO_SETS: (1, 0, 1, 1),
    OnWrite.ZERO_TOGGLES: (1, 0, 0, 1),
    OnWrite.CLEARS: (0, 0, 0, 0),
    OnWrite.SETS: (1, 1, 1, 1),
    OnWrite.EFFECT: (0, 0, 1, 1),
}


class BoundHook(NamedTuple):
    """A method to call around an access, and the bits that it is for."""

    method: str
    is_write: bool
    lsb: int
    mask: int
    """At the place of the bits in the register."""
    values: int
    """How many of (value, old) a write's method takes."""
    is_field: bool


class _Masks:
    """What the kinds of a register's bits come to, as masks."""

    def __init__(self, register: RegisterEntry) -> None:
        def where(wanted: Callable[[Access], object]) -> int:
            return sum(mask for mask, access in register.pieces() if wanted(access))

        self.visible = where(lambda access: access.readable or access == RES1)
        self.always_0 = where(lambda access: not access.keeps and access != RES1)
        self.read_clears = where(lambda access: access.on_read is OnRead.CLEARS)
        self.read_sets = where(lambda access: access.on_read is OnRead.SETS)
        self.stores = where(lambda access: access.on_write is OnWrite.STORES)
        self.once = where(lambda access: access.on_write is OnWrite.ONCE)
        self.ignores = where(lambda access: access.on_write in (OnWrite.IGNORED, OnWrite.EFFECT))
        self.one_clears = where(lambda access: access.on_write is OnWrite.ONE_CLEARS)
        self.one_sets = where(lambda access: access.on_write is OnWrite.ONE_SETS)
        self.truth = tuple(where(lambda access, at=at: _TRUTH[access.on_write][at]) for at in range(4))  # type: ignore[misc]
        # What, written, leaves a bit alone: 1 where writing 0 has an effect, its own value where it is stored.
        self.neutral_ones = where(
            lambda access: access.on_write in (OnWrite.ZERO_CLEARS, OnWrite.ZERO_SETS, OnWrite.ZERO_TOGGLES)
        )
        self.neutral_old = self.stores | self.once | self.ignores


class Slot:
    """One register of a bank, as accesses see it."""

    __slots__ = (
        "end",
        "index",
        "indices",
        "masks",
        "name",
        "offset",
        "once_index",
        "path",
        "reads",
        "register",
        "writes",
    )

    def __init__(self, index: int, item: Placed, masks: _Masks) -> None:
        self.index: Final = index
        self.name: Final = item.name
        self.path: Final = item.path
        self.offset: Final = item.offset
        self.end: Final = item.offset + item.register.size
        self.register: Final = item.register
        self.indices: Final = item.indices
        self.masks: Final = masks
        self.once_index = -1
        self.reads: list[BoundHook] = []
        self.writes: list[BoundHook] = []


class Part(NamedTuple):
    """The part of one register that an access covers."""

    slot: Slot
    shift: int
    """From the access's bits to the register's, to the left; negative where the register begins inside the access."""
    mask: int
    """The bits that are covered, at their place in the register."""


class Layout:
    """All of a bank class's registers, and the functions that carry out its accesses."""

    def __init__(self, bank: RegisterMap, updates: bool) -> None:
        self.map: Final = bank
        self._updates = updates
        found = list(placed(bank.members))
        masks = {id(item.register): _Masks(item.register) for item in _each_once(found)}
        self.slots: Final = tuple(Slot(index, item, masks[id(item.register)]) for index, item in enumerate(found))
        self.resets: Final = [slot.register.reset for slot in self.slots]
        names = [slot.name for slot in self.slots]
        for slot in self.slots:
            if slot.masks.once:
                slot.once_index = len(names)
                names.append(f"{slot.name}.written")
                self.resets.append(0)
        self.names: Final = tuple(names)
        """Of the values that a bank's state keeps: a register's, or which bits of it were written once."""
        by_offset = sorted(self.slots, key=lambda slot: slot.offset)
        # Of two registers at one address one is for reads, the other for writes.
        shared = {slot.offset for slot, other in itertools.pairwise(by_offset) if slot.end > other.offset}
        self._by_direction = tuple(
            [slot for slot in by_offset if slot.offset not in shared or wanted(slot.register)]
            for wanted in (_readable, _writable)
        )
        self._starts = tuple([slot.offset for slot in slots] for slots in self._by_direction)
        self.readers: Final = _Plans(self._reader)
        self.writers: Final = _Plans(self._writer)

    def find(self, path: tuple[str, ...]) -> list[Slot]:
        """Return the registers that a path of names without indices leads to."""
        return [slot for slot in self.slots if slot.path == path]

    def parts(self, offset: int, size: int, is_write: bool) -> tuple[list[Part], int]:
        """Return what an access covers, the lowest address first, and the mask of its bits that nobody has."""
        slots, starts = self._by_direction[is_write], self._starts[is_write]
        found: list[Part] = []
        unmapped = (1 << 8 * size) - 1
        for at in range(max(bisect.bisect_right(starts, offset) - 1, 0), len(slots)):
            slot = slots[at]
            low, high = max(slot.offset, offset), min(slot.end, offset + size)
            if slot.offset >= offset + size:
                break
            if low < high:
                covered = (1 << 8 * (high - low)) - 1
                unmapped &= ~(covered << 8 * (low - offset))
                found.append(Part(slot, 8 * (offset - slot.offset), covered << 8 * (low - slot.offset)))
        return found, unmapped

    def _reader(self, offset: int, size: int) -> Reader:
        parts, unmapped = self.parts(offset, size, False)
        if unmapped and self.map.unmapped == "decline":
            return _decline
        fill = unmapped if self.map.unmapped == "ones" else 0
        readers = [_part_reader(part) for part in parts]
        read = readers[0] if len(readers) == 1 and not fill else _join_readers(readers, fill)
        return _then_update(read) if self._updates and any(_read_has_effects(part) for part in parts) else read

    def _writer(self, offset: int, size: int) -> Writer:
        parts, unmapped = self.parts(offset, size, True)
        if unmapped and self.map.unmapped == "decline":
            return _decline
        if len(parts) == 1:
            return _part_writer(parts[0], self._updates)
        return _join_writers([_part_writer(part, False) for part in parts], self._updates and bool(parts))


class _Plans(dict[int, Any]):
    """Functions by `offset * 16 + size`, made when first asked for."""

    def __init__(self, make: Callable[[int, int], Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: int) -> Any:
        if len(self) >= _PLANS_LIMIT:
            self.clear()
        made = self._make(key >> 4, key & 15)
        self[key] = made
        return made


def _each_once(items: list[Placed]) -> Iterable[Placed]:
    """One of the elements of each array: they share their entry."""
    return {id(item.register): item for item in items}.values()


def _readable(register: RegisterEntry) -> bool:
    return register.readable


def _writable(register: RegisterEntry) -> bool:
    return register.writable


def _decline(bank: RegisterBank[Any], *_: int) -> Any:
    return NotImplemented


# Reading.


def _read_has_effects(part: Part) -> bool:
    masks = part.slot.masks
    return bool((masks.read_clears | masks.read_sets) & part.mask) or bool(_covered(part.slot.reads, part.mask))


def _part_reader(part: Part) -> Reader:
    """A function that reads the part and returns it at its place in the access."""
    slot, shift, mask = part
    index, masks = slot.index, slot.masks
    visible, clears, sets = masks.visible & mask, masks.read_clears & mask, masks.read_sets & mask
    whole = (1 << slot.register.width) - 1
    keeps = whole & ~(clears | sets)
    hooks = [_read_hook(slot, hook) for hook in _covered(slot.reads, mask)]
    # A shift is to the left for a register that begins inside of the access.
    left, right = max(-shift, 0), max(shift, 0)

    if not _read_has_effects(part):
        if not shift and visible == whole:
            return lambda bank: bank.state.registers[index]
        if not shift:
            return lambda bank: bank.state.registers[index] & visible
        return lambda bank: (bank.state.registers[index] & visible) >> right << left

    def read(bank: RegisterBank[Any]) -> int:
        for hook in hooks:
            hook(bank)
        values = bank.state.registers
        value: int = values[index]
        values[index] = value & keeps | sets
        return (value & visible) >> right << left

    return read


def _read_hook(slot: Slot, hook: BoundHook) -> Callable[[RegisterBank[Any]], None]:
    index, indices, (method, _, lsb, mask, _, _) = slot.index, slot.indices, hook
    name = f"{slot.name}{'' if mask >> lsb == (1 << slot.register.width) - 1 else f' bits {mask:#x}'}"

    def call(bank: RegisterBank[Any]) -> None:
        value = getattr(bank, method)(*indices)
        if value is not None:
            if not isinstance(value, int) or value < 0 or value << lsb & ~mask:
                raise ValueError(
                    f"{method}() returned {value!r} for {name}; it returns an int from 0 to {mask >> lsb:#x}, or None"
                )
            values = bank.state.registers
            values[index] = values[index] & ~mask | value << lsb

    return call


def _join_readers(readers: list[Reader], fill: int) -> Reader:
    def read(bank: RegisterBank[Any]) -> int:
        value = fill
        for reader in readers:
            value |= reader(bank)
        return value

    return read


def _then_update(read: Reader) -> Reader:
    def read_and_update(bank: RegisterBank[Any]) -> Any:
        value = read(bank)
        bank.update()
        return value

    return read_and_update


# Writing.


def _part_writer(part: Part, updates: bool) -> Writer:
    """A function that takes the access's whole value and writes the part; then, with `updates`, calls `update`."""
    slot, shift, mask = part
    index, masks = slot.index, slot.masks
    left, right = max(shift, 0), max(-shift, 0)
    hooks = [_write_hook(slot, hook, mask) for hook in _covered(slot.writes, mask)]
    bits = mask & ~(masks.stores | masks.ignores | masks.one_clears | masks.one_sets)
    if bits or hooks:
        return _full_writer(part, hooks, updates)
    stores, ones, zeros = masks.stores & mask, masks.one_sets & mask, masks.one_clears & mask
    whole = (1 << slot.register.width) - 1
    keeps, takes = whole & ~stores, stores | ones

    # The common registers first: nothing but stored bits, nothing but write-1-to-clear bits, no shift.
    if stores == takes and not shift and not keeps & ~masks.always_0:

        def write(bank: RegisterBank[Any], value: int) -> None:
            bank.state.registers[index] = value & takes
            if updates:
                bank.update()

    elif not takes and not shift:

        def write(bank: RegisterBank[Any], value: int) -> None:
            bank.state.registers[index] &= ~(value & zeros)
            if updates:
                bank.update()

    else:

        def write(bank: RegisterBank[Any], value: int) -> None:
            values, value = bank.state.registers, value >> right << left
            values[index] = (values[index] & keeps | value & takes) & ~(value & zeros)
            if updates:
                bank.update()

    return write


def _full_writer(part: Part, hooks: list[Callable[[RegisterBank[Any], int, int], None]], updates: bool) -> Writer:
    """Any mixture of kinds, and hooks."""
    slot, shift, mask = part
    index, once_index, masks = slot.index, slot.once_index, slot.masks
    left, right = max(shift, 0), max(-shift, 0)
    once = masks.once & mask
    stays_0, rises, falls, stays_1 = masks.truth
    one_keeps, one_flips = stays_1 ^ rises, rises  # old & one_keeps ^ one_flips is what a written 1 makes of old
    zero_keeps, zero_flips = falls ^ stays_0, stays_0
    neutral_old, neutral_ones = masks.neutral_old & ~mask, masks.neutral_ones & ~mask

    def write(bank: RegisterBank[Any], value: int) -> None:
        values, value, takes = bank.state.registers, value >> right << left, mask
        old = values[index]
        if once:
            takes &= ~(values[once_index] & once)
            values[once_index] |= once
        zero = old & zero_keeps ^ zero_flips
        new = zero ^ (zero ^ (old & one_keeps ^ one_flips)) & value
        values[index] = old ^ (old ^ new) & takes
        if hooks:
            written = value & mask | old & neutral_old | neutral_ones
            for hook in hooks:
                hook(bank, written, old)
        if updates:
            bank.update()

    return write


def _write_hook(slot: Slot, hook: BoundHook, mask: int) -> Callable[[RegisterBank[Any], int, int], None]:
    indices, (method, _, lsb, bits, count, _) = slot.indices, hook

    if count == 0:
        return lambda bank, written, old: getattr(bank, method)(*indices)
    if count == 1:
        return lambda bank, written, old: getattr(bank, method)(*indices, (written & bits) >> lsb)
    return lambda bank, written, old: getattr(bank, method)(*indices, (written & bits) >> lsb, (old & bits) >> lsb)


def _join_writers(writers: list[Writer], updates: bool) -> Writer:
    def write(bank: RegisterBank[Any], value: int) -> None:
        for writer in writers:
            writer(bank, value)
        if updates:
            bank.update()

    return write


def _covered(hooks: Iterable[BoundHook], mask: int) -> list[BoundHook]:
    """The hooks for any of these bits: fields' first, the lowest first."""
    return sorted((hook for hook in hooks if hook.mask & mask), key=lambda hook: (not hook.is_field, hook.lsb))
