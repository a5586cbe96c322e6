"""Numbers and values as the command's options spell them. Used by every subcommand."""

from __future__ import annotations

import argparse
import math
import re
import threading

_NUMBER = re.compile(r"(?P<digits>[+-]?(?:0[xX][0-9a-fA-F_]+|[0-9][0-9_]*))(?P<suffix>[KMGkmg]?)")
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def number(text: str) -> int:
    """Return an integer: decimal or, with 0x, hexadecimal; K, M and G multiply. Raises `ValueError`."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no number; use 4096, 0x1000, 4K, ...")
    digits = match["digits"].lower()
    return int(digits, 16 if "0x" in digits else 10) * _FACTORS[match["suffix"].lower()]


def value(text: str) -> int | bool | str:
    """Return what NAME=VALUE means: a number, true or false, or else the string itself."""
    try:
        return number(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


def memory_size(text: str) -> int:
    """An argparse type: a size in bytes."""
    try:
        return number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; use 256M, 1G, ...") from None


def address(text: str) -> int:
    """An argparse type: a guest physical address below 4 GiB."""
    try:
        result = number(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    if not 0 <= result < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no address below 4 GiB; use 0x7C00, 1M, ...")
    return result


def seconds(text: str) -> float:
    """An argparse type: a time that is more than nothing and that can be waited for."""
    try:
        time = float(text)
    except ValueError:
        time = math.nan
    if not 0 < time <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give seconds, more than 0")
    return time


def cpus(text: str) -> int:
    """An argparse type: a number of CPUs. Their APIC IDs, from 0, have 8 bits, and 255 is the broadcast."""
    try:
        count = number(text)
    except ValueError:
        count = 0
    if not 1 <= count <= 255:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of CPUs; give 1 to 255")
    return count
