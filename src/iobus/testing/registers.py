"""Registers by name from the guest's side: what a driver would read and write, in a test of a device.

Stands on a device's register map (`iobus.registers`). Where the device's own `device.CTRL.ENABLE` looks at its state,
`registers.CTRL.ENABLE` is a read that the device answers, with all its side effects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from iobus.bus import Region
from iobus.registers.entries import Entry, FieldEntry, RegisterEntry, RegisterMap

Read = Callable[[int, int], int]
Write = Callable[[int, int, int], None]


class Registers:
    """A group of registers by name. A register is a `RegisterPort`, an array has elements by index."""

    __slots__ = ("_members", "_name", "_offset", "_window")

    def __init__(self, window: Window, name: str, offset: int, members: Sequence[Entry]) -> None:
        self._window = window
        self._name = name
        self._offset = offset
        self._members = {member.name: member for member in members}

    def __repr__(self) -> str:
        return f"<registers {self._name}: {', '.join(self._members)}>"

    def __getattr__(self, name: str) -> Any:
        member = self._members.get(name)
        if member is None:
            raise AttributeError(f"{self._name} has no register {name!r}; it has {', '.join(self._members)}")
        if member.array is not None:
            return RegisterArray(self._window, f"{self._name}.{name}", self._offset + member.offset, member)
        return _port(self._window, f"{self._name}.{name}", self._offset + member.offset, member)

    def __getitem__(self, name: str) -> Any:
        """As the attribute, for names that Python does not take."""
        return getattr(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in Registers.__slots__:
            raise AttributeError(f"{self._name}.{name} is not assigned to: use .write({value!r}), which is one access")
        object.__setattr__(self, name, value)


class RegisterArray:
    """Equal registers or groups, by index."""

    def __init__(self, window: Window, name: str, offset: int, entry: Entry) -> None:
        assert entry.array is not None
        self._window, self._name, self._offset, self._entry, self._array = window, name, offset, entry, entry.array

    def __len__(self) -> int:
        return self._array.count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self._array.count:
            raise IndexError(f"{self._name}[{index}]: it has {self._array.count} elements")
        at = self._offset + index * self._array.stride
        return _port(self._window, f"{self._name}[{index}]", at, self._entry)


class RegisterPort:
    """One register. Every read and write is one access of the register's size.

    A field is an attribute: `registers.STATUS.DONE` reads the register and gives the field's value.
    """

    __slots__ = ("_entry", "_fields", "_name", "_offset", "_window")

    def __init__(self, window: Window, name: str, offset: int, entry: RegisterEntry) -> None:
        self._window = window
        self._name = name
        self._offset = offset
        self._entry = entry
        self._fields = {field.name: field for field in entry.fields}

    def __repr__(self) -> str:
        return f"<register {self._name} at offset {self._offset:#x}>"

    def read(self) -> int:
        """Read the register: one access."""
        return self._window.read(self._offset, self._entry.size)

    def write(self, value: int | None = None, /, **fields: int | str) -> None:
        """Write the register: one access. Give its value, or values of fields; those not named are 0.

        A field's value is a number or, where it has names for them, a name.
        """
        if (value is None) == (not fields):
            raise TypeError(f"{self._name}.write: give a value, or fields by name")
        self._window.write(self._offset, self._entry.size, self._with(0, fields) if value is None else value)

    def modify(self, **fields: int | str) -> None:
        """Read the register and write it back with these fields changed: two accesses."""
        self.write(self._with(self.read(), fields))

    def __getattr__(self, name: str) -> int:
        return self[name]

    def __setattr__(self, name: str, value: object) -> None:
        if name not in RegisterPort.__slots__:
            raise AttributeError(
                f"{self._name}.{name} is not assigned to: use .write({name}={value!r}), one access, "
                f"or .modify({name}={value!r}), a read and a write"
            )
        object.__setattr__(self, name, value)

    def __getitem__(self, name: str) -> int:
        """As the attribute, for names that Python does not take."""
        field = self._field(name)
        return self.read() >> field.lsb & (1 << field.width) - 1

    def _field(self, name: str) -> FieldEntry:
        field = self._fields.get(name)
        if field is None:
            raise AttributeError(f"{self._name} has no field {name!r}; it has {', '.join(self._fields) or 'none'}")
        return field

    def _with(self, value: int, fields: dict[str, int | str]) -> int:
        for name, given in fields.items():
            field = self._field(name)
            number = _number(f"{self._name}.{name}", field, given)
            value = value & ~field.mask | number << field.lsb
        return value


class Window:
    """Where a device's registers are: `read` and `write` take offsets and go to `region`, wherever it is now."""

    def __init__(self, region: Region, read: Read, write: Write) -> None:
        self._region: Final = region
        self._read: Final = read
        self._write: Final = write

    def read(self, offset: int, size: int) -> int:
        """Read the register at `offset`, in the region's byte order."""
        return self._swapped(self._read(self._region.base + offset, size), size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register at `offset`, in the region's byte order."""
        self._write(self._region.base + offset, size, self._swapped(value, size))

    def _swapped(self, value: int, size: int) -> int:
        if self._region.endian == "little":
            return value
        return int.from_bytes(value.to_bytes(size, "little"), "big")


def registers_of(region: Region, read: Read, write: Write) -> Registers:
    """Return the registers of the device of `region`. Raises `TypeError` where it has no register map."""
    bank = getattr(region.device, "map", None)
    if not isinstance(bank, RegisterMap):
        raise TypeError(f"{type(region.device).__name__} has no register map: derive it from RegisterBank")
    return Registers(Window(region, read, write), bank.name, 0, bank.members)


def _port(window: Window, name: str, offset: int, entry: Entry) -> Registers | RegisterPort:
    if isinstance(entry, RegisterEntry):
        return RegisterPort(window, name, offset, entry)
    return Registers(window, name, offset, entry.members)


def _number(where: str, field: FieldEntry, value: int | str) -> int:
    if isinstance(value, str):
        for item in field.values:
            if item.name == value:
                return item.value
        names = ", ".join(item.name for item in field.values) or "none"
        raise ValueError(f"{where} has no value {value!r}; it has {names}")
    if not 0 <= value < 1 << field.width:
        raise ValueError(f"{where} = {value}: a field of {field.width} bits takes 0 to {(1 << field.width) - 1}")
    return value
