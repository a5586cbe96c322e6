"""A device's state record: one typed dataclass of plain data a device, saved, restored, compared, printed.

Stands on the ground floor beside `bus.py`. A device's file defines `@dataclass class FooState(State)`,
derives the device from `Stateful` and keeps all it must remember in `self.state`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Self

from iobus.bus import IobusError


class StateError(IobusError, ValueError):
    """Saved data that does not fit the record: it names the field, the value and the type wanted."""


@dataclasses.dataclass
class State:
    """The base of state records. Fields are int, bool, str, bytes, None, another `State`, or lists of these."""

    def save(self) -> dict[str, Any]:
        """Return a copy as plain data (dict, list, int, str, bytes, bool, None): nothing is shared with it."""
        return {field.name: _save(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def restore(cls, plain: object) -> Self:
        """Make a record from what `save` returned.

        The data may come from anywhere, so every name and type is checked; lists keep the length that
        the record's default has. Raises `StateError`.
        """
        if not isinstance(plain, dict):
            raise StateError(f"{cls.__name__}: got {type(plain).__name__}, want a dict of its fields")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if odd := sorted(set(plain) ^ set(fields), key=str):
            raise StateError(f"{cls.__name__}: field {odd[0]!r} is {'unknown' if odd[0] in plain else 'missing'}")
        hints, fresh = typing.get_type_hints(cls), cls()
        values = {name: _load(f"{cls.__name__}.{name}", hints[name], plain[name]) for name in fields}
        for name, value in values.items():
            default = getattr(fresh, name)
            if isinstance(default, list) and default and isinstance(value, list) and len(value) != len(default):
                raise StateError(f"{cls.__name__}.{name}: {len(value)} entries, want {len(default)}")
        return cls(**values)


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
    return [_save(item) for item in value] if isinstance(value, list) else value


def _load(where: str, want: Any, value: Any) -> Any:
    origin = typing.get_origin(want)
    if origin is list:
        if not isinstance(value, list):
            raise StateError(f"{where}: got {value!r}, want a list")
        return [_load(f"{where}[{index}]", typing.get_args(want)[0], item) for index, item in enumerate(value)]
    if origin in (typing.Union, types.UnionType):
        choices = typing.get_args(want)
        if value is None and type(None) in choices:
            return None
        (want,) = (choice for choice in choices if choice is not type(None))
        return _load(where, want, value)
    if isinstance(want, type) and issubclass(want, State):
        return want.restore(value)
    if type(value) is not want:
        raise StateError(f"{where}: got {value!r}, want {want.__name__}")
    return value
