"""`RegisterBank`: a device whose registers are declared, and `BankState`, what it remembers.

Stands on `language.py` (what its class body is written in) and `layout.py` (how an access is carried out),
beside the other devices: it imports `bus.py` and `state.py` only. A class is worked out once, when it is
defined; making a device is making its state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from iobus.bus import Device
from iobus.registers.bodies import check_methods
from iobus.registers.describe import Describer, RegisterAccess, describer
from iobus.registers.entries import RegisterEntry, RegisterMap, Unmapped, check, end_of
from iobus.registers.hooks import attach_hooks
from iobus.registers.kinds import RES1
from iobus.registers.language import Declaration, Declared, doc_of, entries_of, field_text, members_of, refuse_names
from iobus.registers.layout import Layout
from iobus.state import State, StateError, Stateful
from iobus.widths import Value


@dataclass
class BankState(State):
    """What a bank remembers: its registers. Derive from it to remember more beside them.

        @dataclass
        class TimerState(BankState):
            started_at: int = 0

        class Timer(RegisterBank[TimerState]): ...

    Every field needs a default. `RegisterBank.save` gives the registers by name.
    """

    registers: list[int] = field(default_factory=list)
    """The registers' values, in the order of the declaration; filled in when a bank takes the state."""


if TYPE_CHECKING:
    from typing_extensions import TypeVar as _TypeVar

    S = _TypeVar("S", bound=BankState, default=BankState)
else:
    S = TypeVar("S", bound=BankState)


class RegisterBank(Stateful, Device, Generic[S], metaclass=Declared):
    """A device made of registers: derive from it, and declare them.

        class Timer(RegisterBank, length=0x1000):
            CTRL = Control(0x0)
            STATUS = Status(0x4)

            def update(self) -> None:
                self.irq.set(self.STATUS.DONE == 1)

    Class options: `length` is that of the claimed range in bytes, by default up to the end of the last
    register. `unmapped` is what bytes that no register has do: "zero" (they read 0 and ignore writes, the
    default), "ones" (they read as all ones), or "decline" (an access that covers any is declined).

    Raises `MapError` where the class is defined, for registers that overlap and the like, and for hooks of
    what is not there. `map` has the registers as plain data.
    """

    state: S
    length: int = 0
    map: ClassVar[RegisterMap] = RegisterMap("RegisterBank", (), 0)
    _layout: ClassVar[Layout] = Layout(map, False)
    _members: ClassVar[dict[str, tuple[Declaration, int]]] = {}
    _state_type: ClassVar[type[BankState]] = BankState
    _descriptions: ClassVar[dict[tuple[int, int, bool], Describer]] = {}
    _plan_reads: dict[int, Any]
    _plan_writes: dict[int, Any]

    def __init_subclass__(cls, *, length: int | None = None, unmapped: Unmapped | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in getattr(base, "__args__", ()):
                if isinstance(argument, type) and issubclass(argument, BankState):
                    cls._state_type = argument
        cls._members = members_of(cls)
        refuse_names(cls, RegisterBank, cls._members)
        members = entries_of(cls._members)
        if length is None:
            end = max((end_of(member) for member in members), default=0)
            length = vars(cls).get("length", max(end, cls.length))
        cls.map = RegisterMap(
            vars(cls).get("name") or cls.__name__, members, length, unmapped or cls.map.unmapped, doc_of(cls)
        )
        check(cls.map)
        check_methods(cls)
        cls.length = length
        cls._layout = Layout(cls.map, updates=cls.update is not RegisterBank.update)
        cls._descriptions = {}
        attach_hooks(cls, cls._layout)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        # The state is there before a subclass's __init__, which need not call ours.
        self = super().__new__(cls)
        # The instance's own: Python finds those faster than the class's.
        object.__setattr__(self, "_plan_reads", cls._layout.readers)
        object.__setattr__(self, "_plan_writes", cls._layout.writers)
        self.state = cls._state_type()  # type: ignore[assignment]
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "state":
            self._adopt(value)
        elif name in self._members:
            raise AttributeError(
                f"{type(self).__name__}.{name} is declared, and not to be replaced by {value!r}: "
                f"assign to {name}.value or to a field of it"
            )
        object.__setattr__(self, name, value)

    def _adopt(self, state: Any) -> None:
        if not isinstance(state, BankState):
            raise TypeError(f"{type(self).__name__}.state = {state!r}: it takes a {self._state_type.__name__}")
        if not state.registers:
            state.registers = list(self._layout.resets)
        elif len(state.registers) != len(self._layout.resets):
            raise ValueError(
                f"{type(self).__name__}.state: it has {len(state.registers)} registers, "
                f"the device {len(self._layout.resets)}"
            )

    # What the bus calls.

    def read(self, offset: int, size: int) -> Value:
        return self._plan_reads[offset * 16 + size](self)  # type: ignore[no-any-return]

    def write(self, offset: int, size: int, value: int) -> object:
        return self._plan_writes[offset * 16 + size](self, value)

    # What a device defines, or leaves.

    def update(self) -> None:
        """Bring outputs, such as interrupt lines, in line with the registers. Does nothing unless defined.

        Called after each guest access that may have changed anything, when all of the access is done, and
        after `reset` and `restore`. A device that changes its registers at another time (in a timer's
        callback, or when its input arrives) calls it itself.
        """

    def reset(self) -> None:
        """Return the registers to their reset values and the rest of the state to its defaults."""
        self.state = self._state_type()  # type: ignore[assignment]
        self.update()

    # State.

    def save(self) -> dict[str, Any]:
        """Return the state as plain data, the registers by their names."""
        saved = super().save()
        saved["registers"] = dict(zip(self._layout.names, self.state.registers, strict=True))
        return saved

    def restore(self, plain: object) -> None:
        """Take the state `save` returned, or leave the device as it is and raise `StateError`."""
        if isinstance(plain, dict) and "registers" in plain:
            plain = {**plain, "registers": self._registers_of(plain["registers"])}
        super().restore(plain)
        self.update()

    def _registers_of(self, plain: object) -> list[int]:
        where, names = f"{type(self).__name__} registers", self._layout.names
        if not isinstance(plain, dict):
            raise StateError(f"{where}: got {plain!r}, want a dict of their names")
        if odd := sorted(set(plain) ^ set(names), key=str):
            raise StateError(f"{where}: {odd[0]!r} is {'unknown' if odd[0] in plain else 'missing'}")
        for slot in self._layout.slots:
            _check_restored(where, slot.name, slot.register, plain[slot.name])
            if slot.once_index >= 0:
                name = names[slot.once_index]
                if type(plain[name]) is not int or plain[name] & ~slot.masks.once:
                    raise StateError(
                        f"{where}: {name} = {plain[name]!r}; want an int with bits of {slot.masks.once:#x}"
                    )
        return [plain[name] for name in names]

    # Names.

    @classmethod
    def describe(cls, offset: int, size: int, value: int, is_write: bool) -> list[RegisterAccess]:
        """Say what an access of `size` bytes at `offset` with `value` means, by register and field.

        Has no side effects and does not look at the device's state. See `iobus.registers.describe`.
        """
        key = offset, size, is_write
        describe = cls._descriptions.get(key)
        if describe is None:
            if len(cls._descriptions) >= _DESCRIPTIONS_LIMIT:
                cls._descriptions.clear()
            describe = cls._descriptions[key] = describer(cls._layout, offset, size, is_write)
        return describe(value)

    def __str__(self) -> str:
        """A line for each register: its offset, name, value, and fields."""
        width = max((len(slot.name) for slot in self._layout.slots), default=0)
        digits = len(f"{self.length:x}")
        lines = [type(self).__name__]
        for slot in self._layout.slots:
            value = self.state.registers[slot.index]
            fields = " ".join(f"{field.name}={field_text(field, value)}" for field in slot.register.fields)
            shown = f"{value:#0{2 + 2 * slot.register.size}x}"
            lines.append(f"  {slot.offset:#0{2 + digits}x} {slot.name:{width}} {shown:18} {fields}".rstrip())
        return "\n".join(lines)

    def _view(self, member: Declaration) -> Any:
        """The view of a member, made when first asked for: afterwards it is found as any attribute is."""
        name = member._place.attribute
        view = member._bound(self, self._members[name][1])
        object.__setattr__(self, name, view)
        return view


_DESCRIPTIONS_LIMIT = 1 << 14  # a guest can access any offset: bound what describing them makes us keep


def _check_restored(where: str, name: str, register: RegisterEntry, value: object) -> None:
    if type(value) is not int or not 0 <= value < 1 << register.width:
        raise StateError(f"{where}: {name} = {value!r}; want an int of {register.width} bits")
    for mask, access in register.pieces():
        if not access.keeps and value & mask != (mask if access == RES1 else 0):
            raise StateError(f"{where}: {name} = {value:#x}; its bits {mask:#x} are {access} and always the same")
