"""What a device's class body is written in: `Register`, `RegisterGroup` and arrays of them.

Stands on `fields.py` and `bodies.py`; `bank.py` makes a device of it. Each declared thing plays two parts. In a class
body it is a declaration: `CTRL = Control(0x0)` says that a register of the kind `Control` is at offset 0.
Reached through a device it is a view of that device's state: `device.CTRL.ENABLE` is the field's value,
an int, and assigning to it sets it. The types say the same, so that editors complete and checkers check.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Self, TypeVar

from iobus.registers.bodies import check_body, check_options, wrong_place
from iobus.registers.entries import (
    Dimension,
    Entry,
    FieldEntry,
    GroupEntry,
    MapError,
    RegisterEntry,
    bit_range,
    check_fields,
    check_group,
    check_reset,
    clean,
)
from iobus.registers.fields import Field
from iobus.registers.kinds import RES0, RES1, Access

if TYPE_CHECKING:
    from iobus.registers.bank import RegisterBank

T = TypeVar("T", bound="Register | RegisterGroup", covariant=True)


class Declared(type):
    """The metaclass of what is declared: a name given twice is an error, not the first one's silent end."""

    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **_: Any) -> dict[str, object]:
        return _Namespace(name)

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        check_options(name, bases, options)
        namespace = dict(namespace)
        if any(issubclass(base, (Register, RegisterGroup)) for base in bases):
            namespace.setdefault("__slots__", ())  # so that assigning to a field that is not there raises
        return super().__new__(mcls, name, bases, namespace, **options)


class _Namespace(dict[str, object]):
    def __init__(self, owner: str) -> None:
        super().__init__()
        self._owner = owner

    def __setitem__(self, name: str, value: object) -> None:
        before = self.get(name)
        if before is not None and any(hasattr(type(item), "_declared") for item in (before, value)):
            raise MapError(f"{self._owner}: two things are called {name}: {_shown(before)} and {_shown(value)}")
        super().__setitem__(name, value)


def _shown(item: object) -> str:
    return f"the method {item.__name__}()" if inspect.isfunction(item) else repr(item)


class Place:
    """Where a declaration puts its register, group or array."""

    __slots__ = ("array", "attribute", "doc", "name", "offset", "reset")

    def __init__(self, offset: int, doc: str, reset: int | None, name: str, array: Dimension | None = None) -> None:
        self.offset = offset
        self.doc = doc
        self.reset = reset
        self.name = name
        self.array = array
        self.attribute = ""

    def wrong(self) -> str:
        """What is wrong with it, or nothing: the class says so, by the attribute's name."""
        array = (self.array.count, self.array.stride) if self.array else None
        return wrong_place(self.offset, self.doc, self.reset, self.name, array)

    def set_name(self, name: str) -> None:
        self.attribute = name
        self.name = self.name or name


class Register(metaclass=Declared):
    """A kind of register: derive from it and give it fields, then put it at an offset of a bank.

        class Control(Register):
            ENABLE = Field(0, RW, "Runs the timer")
            MODE = Field(bits(2, 1), RW, values=Mode, reset=Mode.PERIODIC)

        class Timer(RegisterBank):
            CTRL = Control(0x0)

    Class options: `width` is 8, 16, 32 (the default) or 64 bits; `rest` is the kind of the bits that no
    field has, reserved-0 by default, and with `rest=None` each bit must have a field. A register without
    fields is all `rest`: `class Data(Register, rest=RW)`. The docstring is the register's description.

    Raises `MapError` where the class is made, for a field outside of the register and the like.
    """

    __slots__ = ("_bank", "_index", "_parents", "_place")
    _bank: RegisterBank[Any] | None
    _index: int
    _parents: tuple[Place, ...]
    _place: Place
    _layout: ClassVar[RegisterEntry] = RegisterEntry("Register", 0)
    _fields: ClassVar[tuple[Field, ...]] = ()
    _declared: ClassVar = True

    def __init_subclass__(cls, *, width: int | None = None, rest: Access | None = RES0) -> None:
        super().__init_subclass__()
        check_body(cls, (Field,))
        if not isinstance(rest, Access | None):
            raise MapError(f"{cls.__name__}: rest={rest!r}; give an access kind such as RW, or None")
        cls._fields = tuple(item for item in _attributes(cls).values() if isinstance(item, Field))
        refuse_names(cls, Register, [field.attribute for field in cls._fields])
        for field in cls._fields:
            if field.wrong:
                raise MapError(f"{cls.__name__}.{field.attribute}: {field.wrong}")
        entries = tuple(field.entry() for field in cls._fields)
        width = cls._layout.width if width is None else width
        layout = RegisterEntry(cls.__name__, 0, width, entries, 0, RES0 if rest is None else rest, doc_of(cls))
        check_fields(cls.__name__, layout)
        if rest is None and layout.rest_mask:
            raise MapError(
                f"{cls.__name__}: no field has {_bits_of(layout.rest_mask)}; with rest=None each bit has one"
            )
        reset = layout.rest_mask if layout.rest == RES1 else 0
        for field, entry in zip(cls._fields, entries, strict=True):
            value = field.mask if field.access == RES1 else field.reset
            if value & field.mask != value:
                raise MapError(
                    f"{cls.__name__}: reset value {field.reset:#x} of {entry} does not fit in its {entry.width} bits"
                )
            reset |= value << field.lsb
        rest = layout.rest if layout.rest_mask else RES0  # the kind of no bits is no difference between two maps
        cls._layout = RegisterEntry(cls.__name__, 0, width, entries, reset, rest, layout.doc)
        check_reset(cls.__name__, cls._layout)

    def __init__(self, offset: int, doc: str = "", *, reset: int | None = None, name: str = "") -> None:
        """Put a register at `offset` bytes from the start of its bank or group.

        `reset` is its value after reset, in place of what the fields say; `doc` comes in place of the
        class's docstring, and `name` is the datasheet's name where that is none that Python takes.
        """
        self._place = Place(offset, doc, reset, name)
        self._bank = None
        self._index = 0
        self._parents = ()

    @classmethod
    def array(
        cls, offset: int, count: int, *, stride: int | None = None, doc: str = "", reset: int | None = None,
        name: str = "",
    ) -> Array[Self]:  # fmt: skip
        """Put `count` registers, `stride` bytes apart (by default without a gap), from `offset` on."""
        size = cls._layout.size
        return Array(cls(0), Place(offset, doc, reset, name, Dimension(count, size if stride is None else stride)))

    def __set_name__(self, owner: type, name: str) -> None:
        self._place.set_name(name)

    def __get__(self, instance: Any, owner: type) -> Self:
        return self if instance is None else instance._view(self)

    @property
    def value(self) -> int:
        """The whole register.

        Assigning to it sets the bits that keep something; W, RES0 and RES1 stay what they always are, whatever the
        value has there: it may be what a guest wrote. Raises `ValueError` for one that the register is too narrow for.
        """
        values: list[int] = self._require_bank().state.registers
        return values[self._index]

    @value.setter
    def value(self, value: int) -> None:
        bank = self._require_bank()
        if value >> self._layout.width:
            raise ValueError(f"{self._name()}.value = {value:#x}: the register has {self._layout.width} bits")
        for mask, access in self._layout.pieces():
            if not access.keeps:
                value = value | mask if access == RES1 else value & ~mask
        bank.state.registers[self._index] = value

    def __repr__(self) -> str:
        if self._bank is None:
            return f"the register at {self._place.offset:#x}"
        shown = [f"{self._name()} {self.value:#0{2 + 2 * self._layout.size}x}"]
        shown += [f"{field.name}={field_text(field.entry(), self.value)}" for field in self._fields]
        return f"<{' '.join(shown)}>"

    def _name(self) -> str:
        return type(self).__name__ if self._bank is None else self._bank._layout.names[self._index]

    def _require_bank(self) -> RegisterBank[Any]:
        if self._bank is None:
            raise AttributeError(f"{self!r} of kind {type(self).__name__} has a value in a device only, not in a class")
        return self._bank

    def _bound(self, bank: RegisterBank[Any] | None, index: int, parents: tuple[Place, ...] = ()) -> Self:
        """Return the view of this register in `bank`, or, without one, a target for hooks below `parents`."""
        view = object.__new__(type(self))
        view._place, view._bank, view._index, view._parents = self._place, bank, index, parents
        return view

    @classmethod
    def _span(cls) -> int:
        return 1

    def _entry(self) -> RegisterEntry:
        place, layout = self._place, self._layout
        reset = layout.reset if place.reset is None else place.reset
        doc = clean(place.doc) or layout.doc
        return RegisterEntry(
            place.name, place.offset, layout.width, layout.fields, reset, layout.rest, doc, place.array
        )


class RegisterGroup(metaclass=Declared):
    """Registers that come together: derive from it, put registers into it, and put it into a bank or group.

    class Channel(RegisterGroup):
        CTRL = Control(0x0)
        ADDRESS = Address(0x8)

    class Dma(RegisterBank):
        CHANNEL = Channel.array(0x100, 8, stride=0x20)
    """

    __slots__ = ("_bank", "_index", "_parents", "_place")
    _bank: RegisterBank[Any] | None
    _index: int
    _parents: tuple[Place, ...]
    _place: Place
    _members: ClassVar[dict[str, tuple[Declaration, int]]] = {}
    _declared: ClassVar = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._members = members_of(cls)
        refuse_names(cls, RegisterGroup, cls._members)
        check_group(cls.__name__, entries_of(cls._members))

    def __init__(self, offset: int, doc: str = "", *, name: str = "") -> None:
        """Put the group at `offset` bytes from the start of the bank or group it is in."""
        self._place = Place(offset, doc, None, name)
        self._bank = None
        self._index = 0
        self._parents = ()

    @classmethod
    def array(cls, offset: int, count: int, *, stride: int | None = None, doc: str = "", name: str = "") -> Array[Self]:
        """Put `count` groups, `stride` bytes apart (by default without a gap), from `offset` on."""
        size = GroupEntry("", 0, entries_of(cls._members)).size
        return Array(cls(0), Place(offset, doc, None, name, Dimension(count, size if stride is None else stride)))

    def __set_name__(self, owner: type, name: str) -> None:
        self._place.set_name(name)

    def __get__(self, instance: Any, owner: type) -> Self:
        return self if instance is None else instance._view(self)

    def __repr__(self) -> str:
        return f"the group at {self._place.offset:#x}"

    def _view(self, member: Declaration) -> Any:
        if self._bank is None:
            return member._bound(None, 0, (*self._parents, self._place))
        return member._bound(self._bank, self._index + self._members[member._place.attribute][1])

    def _bound(self, bank: RegisterBank[Any] | None, index: int, parents: tuple[Place, ...] = ()) -> Self:
        view = object.__new__(type(self))
        view._place, view._bank, view._index, view._parents = self._place, bank, index, parents
        return view

    @classmethod
    def _span(cls) -> int:
        return sum(member._span() for member, _ in cls._members.values())

    def _entry(self) -> GroupEntry:
        place = self._place
        return GroupEntry(
            place.name, place.offset, entries_of(self._members), clean(place.doc) or doc_of(type(self)), place.array
        )


class Array(Generic[T]):
    """Equal registers or groups at equal distances. Made by `array`; `device.CHANNEL[3]` is one of them."""

    __slots__ = ("_bank", "_element", "_index", "_parents", "_place")
    _declared: ClassVar = True

    def __init__(self, element: T, place: Place) -> None:
        self._element: Final[Any] = element
        element._place = place
        self._place: Final = place
        self._bank: RegisterBank[Any] | None = None
        self._index = 0
        self._parents: tuple[Place, ...] = ()

    def __set_name__(self, owner: type, name: str) -> None:
        self._place.set_name(name)

    def __get__(self, instance: Any, owner: type) -> Self:
        return self if instance is None else instance._view(self)

    def __repr__(self) -> str:
        return f"the array at {self._place.offset:#x}"

    def __len__(self) -> int:
        assert self._place.array is not None
        return self._place.array.count

    def __getitem__(self, index: int) -> T:
        """Return element `index`; a negative one counts from the end. Raises `IndexError`."""
        if self._bank is None:
            raise AttributeError(f"{self!r} has elements in a device only; for a hook of each element use .each")
        try:
            index = range(len(self))[index]
        except IndexError:
            raise IndexError(f"{self._place.name}[{index}]: it has {len(self)} elements") from None
        element: T = self._element._bound(self._bank, self._index + index * self._element._span())
        return element

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))

    @property
    def each(self) -> T:
        """Every element, in a class body: `@on_write(CHANNEL.each.CTRL)` is a hook of each channel's CTRL."""
        element: T = self._element._bound(None, 0, self._parents)
        return element

    def _bound(self, bank: RegisterBank[Any] | None, index: int, parents: tuple[Place, ...] = ()) -> Self:
        view = object.__new__(type(self))
        view._element = self._element  # type: ignore[misc]
        view._place, view._bank, view._index, view._parents = self._place, bank, index, parents  # type: ignore[misc]
        return view

    def _span(self) -> int:
        assert self._place.array is not None
        return self._place.array.count * int(self._element._span())

    def _entry(self) -> Entry:
        entry: Entry = self._element._entry()
        return entry


Declaration = Register | RegisterGroup | Array[Any]


def field_text(field: FieldEntry, register: int) -> str:
    """A field's value in a register's, by its name where it has one."""
    value = register >> field.lsb & (1 << field.width) - 1
    for named in field.values:
        if named.value == value:
            return named.name
    return str(value) if value < 10 else f"{value:#x}"


def _attributes(cls: type) -> dict[str, Any]:
    """The attributes of a class and its bases, as they hold for the class, in the order of their first declaration."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base))
    return found


def members_of(cls: type) -> dict[str, tuple[Declaration, int]]:
    """What is declared in a class: by attribute, the declaration and the index of its first register.

    Raises `MapError` for what is not quite declared.
    """
    check_body(cls, (Register, RegisterGroup, Array))
    members: dict[str, tuple[Declaration, int]] = {}
    index = 0
    for name, item in _attributes(cls).items():
        if isinstance(item, (Register, RegisterGroup, Array)):
            if wrong := item._place.wrong():
                raise MapError(f"{cls.__name__}.{name}: {wrong}")
            members[name] = item, index
            index += item._span()
    return members


def is_taken(base: type, name: str) -> bool:
    """Whether a name has a meaning for every class derived from `base`, so that nothing can be declared by it."""
    annotated = any(name in vars(parent).get("__annotations__", ()) for parent in base.__mro__)
    return name.startswith("_") or hasattr(base, name) or annotated or name in _OF_DEVICES


def refuse_names(cls: type, base: type, names: Iterable[str]) -> None:
    """Raise `MapError` where something declared would hide what every register, group or bank has."""
    for name in names:
        if is_taken(base, name):
            raise MapError(
                f"{cls.__name__}: nothing declared in it can be called {name!r}, which has a meaning for every "
                f"{base.__name__}; call it {name.strip('_')}_ and give name={name!r}"
            )


_OF_DEVICES: Final = ("connect", "in_range")  # what a device may have and `RegisterBank` has not


def entries_of(members: dict[str, tuple[Declaration, int]]) -> tuple[Entry, ...]:
    """The declarations as plain data."""
    return tuple(declaration._entry() for declaration, _ in members.values())


def doc_of(cls: type) -> str:
    """The class's own docstring, as maps have it."""
    return clean(vars(cls).get("__doc__") or "")


def _bits_of(mask: int) -> str:
    runs, bit = [], 0
    while mask >> bit:
        if mask >> bit & 1:
            low = bit
            while mask >> bit + 1 & 1:
                bit += 1
            runs.append(bit_range(bit, low))
        bit += 1
    return ", ".join(reversed(runs))
