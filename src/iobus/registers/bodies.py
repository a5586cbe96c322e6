"""What a class body may hold: a mistake that Python itself lets pass is an error where the class is defined.

Stands on `entries.py` and `kinds.py`. `language.py` and `bank.py` call these checks when a class is made, `hooks.py`
when a method is put to its register. Each error names the class, the attribute and what would be right.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

from iobus.registers.entries import MapError
from iobus.registers.kinds import Access

_CALLED: Final[dict[str, tuple[str, ...]]] = {
    "read": ("offset", "size"),
    "write": ("offset", "size", "value"),
    "update": (),
    "reset": (),
    "connect": ("pc",),
    "in_range": ("address", "size"),
    "save": (),
    "restore": ("plain",),
    "restored": (),
}
"""The methods of a device that others call, and what they are given."""


def check_options(name: str, bases: tuple[type, ...], options: dict[str, Any]) -> None:
    """Raise `MapError` for an option of a class that no class it derives from takes."""
    known: dict[str, None] = {}
    for parent in dict.fromkeys(parent for base in bases for parent in base.__mro__):
        function = getattr(vars(parent).get("__init_subclass__"), "__func__", None)
        if function is not None:
            parameters = inspect.signature(function).parameters.values()
            known.update(dict.fromkeys(item.name for item in parameters if item.kind is item.KEYWORD_ONLY))
    for option in options:
        if option not in known:
            takes = " and ".join(known) or "none"
            raise MapError(f"{name}: there is no class option {option!r}; a {bases[0].__name__} takes {takes}")


def check_body(cls: type, takes: tuple[type, ...]) -> None:
    """Raise `MapError` where the class has something declared that is not of `takes`, or not quite declared."""
    holds_fields = any(issubclass(kind, property) for kind in takes)
    for owner in cls.__mro__:
        for name, item in vars(owner).items():
            if name.startswith("_"):
                continue
            where = f"{cls.__name__}.{name}"
            if isinstance(item, (tuple, list)) and any(hasattr(type(part), "_declared") for part in item):
                raise MapError(f"{where} is a {type(item).__name__}; declare one thing, or several by its array()")
            if isinstance(item, type):
                if not hasattr(item, "_declared") or item.__qualname__ == f"{owner.__qualname__}.{name}":
                    continue  # nothing of ours, or a class that is defined here
                if issubclass(item, takes):
                    how = "..." if holds_fields else "0x0"
                    raise MapError(
                        f"{where} is the class {item.__name__} itself; write {name} = {item.__name__}({how})"
                    )
            elif not hasattr(type(item), "_declared") or isinstance(item, takes):
                continue
            if holds_fields:
                raise MapError(f"{where} is no field, which a Register has; registers go into a RegisterBank")
            raise MapError(f"{where} is a field, and registers are what is here; a field goes into a Register")


def check_methods(cls: type) -> None:
    """Raise `MapError` where a method of a device cannot be called as devices are."""
    for name, takes in _CALLED.items():
        item = inspect.getattr_static(cls, name, None)
        where = f"{cls.__name__}.{name}"
        check_runs(where, item)
        if inspect.isfunction(item):
            signature = inspect.signature(item, follow_wrapped=False)
            try:
                signature.bind("self", *takes)
            except TypeError:
                shown = ", ".join(map(str, signature.parameters.values()))
                raise MapError(f"{where} takes ({shown}); give it ({', '.join(['self', *takes])})") from None


def check_runs(where: str, item: object) -> None:
    """Raise `MapError` for a method whose call would not run it."""
    function: Any = getattr(item, "__func__", item)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise MapError(f"{where} is async, and nothing would await it; write it with def")
    if inspect.isgeneratorfunction(function):
        raise MapError(f"{where} is a generator, and a call would not run it; write it without yield")


def wrong_field(where: object, access: object, doc: object, reset: object, values: object, name: object) -> str:
    """What is wrong with the arguments of a `Field`, or nothing."""
    bits = where if isinstance(where, tuple) and hasattr(where, "msb") else (where,)
    if not all(isinstance(bit, int) for bit in bits):
        return f"its place is {where!r}; give the number of a bit, or bits(msb, lsb)"
    if not isinstance(access, Access):
        return f"its kind is {access!r}; give an access kind such as RW"
    if values is not None and not (isinstance(values, type) and issubclass(values, Enum) and issubclass(values, int)):
        return f"values={values!r}; give a class derived from Values or IntEnum"
    return _wrong_words(doc, reset, name)


def wrong_place(offset: object, doc: object, reset: object, name: object, array: Sequence[object] | None) -> str:
    """What is wrong with the arguments that put a register, a group or an array at its place, or nothing."""
    if not isinstance(offset, int):
        return f"its offset is {offset!r}; give a whole number of bytes"
    if array is not None and not all(isinstance(item, int) for item in array):
        return f"an array of {array[0]!r}, {array[1]!r} bytes apart; give whole numbers"
    return _wrong_words(doc, reset, name)


def _wrong_words(doc: object, reset: object, name: object) -> str:
    if not isinstance(doc, str):
        return f"its description is {doc!r}; give a text, and a reset value as reset={doc!r}"
    if reset is not None and not isinstance(reset, int):
        return f"reset={reset!r}; give a whole number"
    return "" if isinstance(name, str) else f"name={name!r}; give a text"
