"""Hooks: `on_read` and `on_write` mark methods, `attach_hooks` puts them to the registers they are for.

Stands on `language.py`, `bodies.py` and `layout.py`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from iobus.registers.bodies import check_runs
from iobus.registers.entries import FieldEntry, MapError
from iobus.registers.fields import FieldTarget
from iobus.registers.language import Array, Register
from iobus.registers.layout import BoundHook, Layout, Slot

F = TypeVar("F", bound=Callable[..., Any])


class Hook(NamedTuple):
    """What `on_read` and `on_write` leave on a method."""

    is_write: bool
    target: Any


Target = Register | Array[Any] | int | str
"""What a hook is for. In a class body `CTRL.ENABLE` has the type int, as it has through a device."""


def on_read(target: Target) -> Callable[[F], F]:
    """Call the method before a guest's read of `target`: a register, a field of one, or its name as a string.

    The method takes nothing (but the indices, for an array's elements) and returns the value that the
    register or field has from now on, or None to leave it. It is called once an access that covers any
    bit of the target.
    """
    return _hook(False, target)


def on_write(target: Target) -> Callable[[F], F]:
    """Call the method after a guest's write of `target`: a register, a field of one, or its name as a string.

    The method is given the value as the guest wrote it, and the value before; it may take fewer: none, or
    only the first. For an array's elements the indices come first. The register holds already what the
    write made of it. It is called once an access that covers any bit of the target; bits that the access
    did not cover are given as what would leave them alone (see docs/registers.md).
    """
    return _hook(True, target)


def _hook(is_write: bool, target: Target) -> Callable[[F], F]:
    if callable(target) and not isinstance(target, type):  # the method itself: the brackets were forgotten
        name = ".".join(getattr(target, "__qualname__", repr(target)).split(".")[-2:])
        decorator = "on_write" if is_write else "on_read"
        raise MapError(f"{name}: @{decorator} without a target; say what it is for, as in @{decorator}(CTRL)")

    def mark(method: F) -> F:
        hooks: list[Hook] = method.__dict__.setdefault("__iobus_hooks__", [])
        hooks.append(Hook(is_write, target))
        return method

    return mark


def _hooks_of(method: object) -> Sequence[Hook]:
    """What `on_read` and `on_write` left on a method, or on what a `staticmethod` and the like is made of."""
    inner = getattr(method, "__func__", None) or getattr(method, "fget", None) or method
    return getattr(method, "__iobus_hooks__", ()) or getattr(inner, "__iobus_hooks__", ())


def attach_hooks(cls: type, layout: Layout) -> None:
    """Find the methods that are hooks and put them to the registers they are for."""
    methods: dict[str, Sequence[Hook]] = {}
    for base in cls.__mro__:
        for name, item in vars(base).items():
            if hooks := _hooks_of(item):
                methods.setdefault(name, hooks)
    for name, hooks in methods.items():
        for hook in hooks:
            _attach_hook(cls, layout, name, hook)


def _attach_hook(cls: type, layout: Layout, method: str, hook: Hook) -> None:
    where = f"{cls.__name__}.{method}: {'on_write' if hook.is_write else 'on_read'}"
    item = inspect.getattr_static(cls, method)
    if isinstance(item, (staticmethod, classmethod, property)):
        raise MapError(f"{where}: its method is a {type(item).__name__}; make it a plain one, which takes self")
    check_runs(f"{cls.__name__}.{method}", item)
    slots, field = _resolve(where, layout, hook.target)
    register = slots[0].register
    mask, lsb = (field.mask, field.lsb) if field else ((1 << register.width) - 1, 0)
    kinds = [access for bits, access in register.pieces() if bits & mask]
    if not any(access.writable if hook.is_write else access.readable for access in kinds):
        what = "a write of it is ignored" if hook.is_write else "no read shows it"
        better = "RWME or W" if hook.is_write else "RME"
        raise MapError(f"{where} of {_shown(slots, field)}, which is {kinds[0]}: {what}; make it {better}")
    count = _argument_count(where, getattr(cls, method), len(slots[0].indices), 2 if hook.is_write else 0)
    for slot in slots:
        hooks = slot.writes if hook.is_write else slot.reads
        for other in hooks:
            if (other.mask, other.is_field) == (mask, field is not None):
                raise MapError(f"{where} of {_shown(slots, field)}, which has one: {other.method}")
        hooks.append(BoundHook(method, hook.is_write, lsb, mask, count, field is not None))


def _resolve(where: str, layout: Layout, target: object) -> tuple[list[Slot], FieldEntry | None]:
    """What a hook is for: the registers (all elements of arrays), and the field if it is one's."""
    if isinstance(target, str):
        names = tuple(re.sub(r"\[\w*\]", "", target).split("."))
        slots = layout.find(names)
        field_name = "" if slots else names[-1]
        slots = slots or layout.find(names[:-1])
    elif isinstance(target, (Register, FieldTarget)):
        register = target.register if isinstance(target, FieldTarget) else target
        names = (*(place.name for place in register._parents), register._place.name)
        field_name = target.name if isinstance(target, FieldTarget) else ""
        slots = layout.find(names)
    else:
        hint = "; for a hook of each of its elements use .each" if isinstance(target, Array) else ""
        raise MapError(f"{where} of {target!r}, which is neither a register nor a field{hint}")
    if not slots:
        known = ", ".join(dict.fromkeys(".".join(slot.path) for slot in layout.slots)) or "none"
        raise MapError(f"{where} of {'.'.join(names)}, but {layout.map.name} has no such register; it has {known}")
    if not field_name:
        return slots, None
    for field in slots[0].register.fields:
        if field.name == field_name:
            return slots, field
    known = ", ".join(field.name for field in slots[0].register.fields) or "none"
    raise MapError(f"{where} of {'.'.join(slots[0].path)}.{field_name}, but there is no such field; there are {known}")


def _shown(slots: list[Slot], field: FieldEntry | None) -> str:
    return ".".join((*slots[0].path, *((field.name,) if field else ())))


def _argument_count(where: str, method: Callable[..., Any], indices: int, most: int) -> int:
    """How many values a hook's method takes behind `self` and the indices."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    positional = [item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    count = len(positional) - indices
    if any(item.kind is item.VAR_POSITIONAL for item in parameters):
        count = max(count, most)
    if not 0 <= count <= most or any(
        item.kind is item.KEYWORD_ONLY and item.default is item.empty for item in parameters
    ):
        takes = ", ".join(["self", *["index"] * indices, *["value", "old"][:most]])
        raise MapError(f"{where}: its method takes ({', '.join(['self', *map(str, parameters)])}); give it ({takes})")
    return count
