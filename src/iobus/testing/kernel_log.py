"""What Linux says: on its console when something is wrong in the kernel, and of interrupts. Texts into data.

Beside `guest.py`, which keeps the console's text.
"""

from __future__ import annotations

import re
from typing import Final

_STAMP: Final = r"^\[ *\d+\.\d+\] (?:\[[^\]\n]*\] )?"  # a time, and by some kernels the caller
_BEGINS: Final = re.compile(
    _STAMP + r"(?:-+\[ cut here \]-+|BUG: |Oops: |WARNING: |Kernel panic|general protection fault|Unable to handle|"
    r"divide error|invalid opcode|stack segment|int3: |list_(?:add|del) corruption|"
    r"INFO: task \S+ blocked|INFO: rcu_|rcu: INFO: |watchdog: BUG|irq \d+: nobody cared|sysfs: cannot create)",
    re.MULTILINE,
)
_ENDS: Final = re.compile(
    _STAMP + r"(?:---\[ end (?:trace|Kernel panic)|Disabling IRQ|(?:BUG|INFO): .*(?:lockdep|hung))", re.MULTILINE
)
_LONGEST: Final = 8000  # characters of one complaint

TROUBLE: Final = {
    4: "a machine check",
    5: "a bad page",
    7: "an oops",
    9: "a warning",
    14: "a soft lockup",
}
"""The taint bits that a working driver does not set (the kernel's Documentation/admin-guide/tainted-kernels.rst)."""


def complaints(log: str) -> list[str]:
    """Return each complaint of the kernel in `log`, from its first line to its last."""
    found = []
    at = 0
    while (begin := _BEGINS.search(log, at)) is not None:
        end = _ENDS.search(log, begin.end())
        stop = len(log) if end is None else log.find("\n", end.end())
        stop = min(len(log) if stop < 0 else stop, begin.start() + _LONGEST)
        found.append(log[begin.start() : stop].strip())
        at = max(stop, begin.end())
    return found


def trouble(tainted: int) -> list[str]:
    """Name what the bits of /proc/sys/kernel/tainted say went wrong; a module of one's own is none of that."""
    return [name for bit, name in TROUBLE.items() if tainted >> bit & 1]


def interrupt_counts(text: str) -> dict[int, int]:
    """Read /proc/interrupts: by number, how often, on all CPUs together."""
    found = re.finditer(r"^ *(\d+):((?: +\d+)+) ", text, re.MULTILINE)
    return {int(line[1]): sum(map(int, line[2].split())) for line in found}
