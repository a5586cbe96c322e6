"""A device's state record: one typed dataclass of plain data a device, saved, restored, compared, printed.

Stands on the ground floor beside `bus.py`. A device's file defines `@dataclass class FooState(State)`,
derives the device from `Stateful` and keeps all it must remember in `self.state`. The types of the fields
say what may stand in them, also how far a number or a list goes::

    index: U8 = 0
    rotation: Annotated[int, Range(0, 7)] = 7
    fifo: Annotated[list[U8], Length(0, 16)] = field(default_factory=list)

What a record is restored from may come from anywhere, so all of that is checked; what one field says of
another is for the record's `check`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Annotated, Any, Self

from iobus.bus import IobusError


class StateError(IobusError, ValueError):
    """Saved data that does not fit the record: it names the field, the value and what would fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Of an integer field: the least and the greatest value it may have."""

    least: int
    greatest: int


@dataclasses.dataclass(frozen=True, slots=True)
class Length:
    """Of a list, bytes or string field: the least and the greatest number of entries it may have."""

    least: int
    greatest: int


U8 = Annotated[int, Range(0, 0xFF)]
U16 = Annotated[int, Range(0, 0xFFFF)]
U32 = Annotated[int, Range(0, 0xFFFFFFFF)]
U64 = Annotated[int, Range(0, 0xFFFFFFFF_FFFFFFFF)]
Time = Annotated[int, Range(-(1 << 63), (1 << 63) - 1)]
"""Nanoseconds of the machine's clock, 292 years either way; or a count of something slower."""


@dataclasses.dataclass
class State:
    """The base of state records. Fields are int, bool, str, bytes, None, another `State`, or lists of these.

    A device's memory of its own may be a bytearray: it is saved as bytes, and restored at the default's length.
    """

    def save(self) -> dict[str, Any]:
        """Return a copy as plain data (dict, list, int, str, bytes, bool, None): nothing is shared with it."""
        return {field.name: _save(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def restore(cls, plain: object) -> Self:
        """Make a record from what `save` returned.

        The data may come from anywhere, so every name, type, `Range` and `Length` is checked, and then
        `check` is called; lists keep the length that the record's default has, where that is not 0.
        Raises `StateError`.
        """
        if not isinstance(plain, dict):
            raise StateError(f"{cls.__name__}: got {type(plain).__name__}, want a dict of its fields")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if odd := sorted(set(plain) ^ set(fields), key=_shown):
            raise StateError(f"{cls.__name__}: field {_shown(odd[0])} is {'unknown' if odd[0] in plain else 'missing'}")
        hints, fresh = typing.get_type_hints(cls, include_extras=True), cls()
        values = {name: _load(f"{cls.__name__}.{name}", hints[name], plain[name]) for name in fields}
        for name, value in values.items():
            _check_lengths(f"{cls.__name__}.{name}", value, getattr(fresh, name))
        record = cls(**values)
        record.check()
        return record

    def check(self) -> None:
        """Raise `StateError` where fields contradict each other. Called when a record is restored."""


class Stateful:
    """A device whose memory is one record, `state`."""

    state: Any

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        saved: dict[str, Any] = self.state.save()
        return saved

    def restore(self, plain: object) -> None:
        """Take the state `save` returned, or leave the device as it is and raise `StateError`."""
        self.state = type(self.state).restore(plain)
        self.restored()

    def restored(self) -> None:
        """Bring what follows from the state (timers, lines, regions) in line with it."""


def _save(value: Any) -> Any:
    if isinstance(value, State):
        return value.save()
    if isinstance(value, bytearray):
        return bytes(value)
    return [_save(item) for item in value] if isinstance(value, list) else value


def _load(where: str, want: Any, value: Any) -> Any:
    origin = typing.get_origin(want)
    if origin is Annotated:
        want, *limits = typing.get_args(want)
        value = _load(where, want, value)
        for limit in limits:
            _check_limit(where, limit, value)
        return value
    if origin is list:
        if not isinstance(value, list):
            raise StateError(f"{where}: got {_shown(value)}, want a list")
        return [_load(f"{where}[{index}]", typing.get_args(want)[0], item) for index, item in enumerate(value)]
    if origin in (typing.Union, types.UnionType):
        choices = typing.get_args(want)
        if value is None and type(None) in choices:
            return None
        (want,) = (choice for choice in choices if choice is not type(None))
        return _load(where, want, value)
    if isinstance(want, type) and issubclass(want, State):
        return want.restore(value)
    if want is bytearray and type(value) is bytes:
        return bytearray(value)
    if type(value) is not want:
        raise StateError(f"{where}: got {_shown(value)}, want {want.__name__}")
    return value


def _check_limit(where: str, limit: object, value: Any) -> None:
    if isinstance(limit, Range) and not limit.least <= value <= limit.greatest:
        raise StateError(f"{where}: got {value:#x}, want {limit.least:#x} to {limit.greatest:#x}")
    if isinstance(limit, Length) and not limit.least <= len(value) <= limit.greatest:
        raise StateError(f"{where}: {len(value)} entries, want {limit.least} to {limit.greatest}")


def _check_lengths(where: str, value: Any, default: Any) -> None:
    """Lists have the length of their default, and so do the lists in them."""
    if not isinstance(value, list | bytearray) or not isinstance(default, list | bytearray) or not default:
        return
    if len(value) != len(default):
        raise StateError(f"{where}: {len(value)} entries, want {len(default)}")
    if isinstance(value, bytearray):
        return
    for index, (item, its_default) in enumerate(zip(value, default, strict=True)):
        _check_lengths(f"{where}[{index}]", item, its_default)


def _shown(value: object) -> str:
    """The value for a message; only its type where it is long, or cannot be printed at all."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in a list in a list ...
        text = ""
    return text if 0 < len(text) <= 80 else f"a {type(value).__name__}"
