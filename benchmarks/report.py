"""What a benchmark returns (`Row`), the table that is printed, and what is known of the machine.

The ground floor of the benchmarks: imports none of them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any, Final

QEMU: Final = "qemu-system-x86_64"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One comparison. Lower is better everywhere."""

    benchmark: str
    """The module that measured it."""
    name: str
    unit: str
    peer_name: str
    iobus: float | None = None
    """In `unit`; None where it could not be measured, and `note` says why."""
    peer: float | None = None
    goal: float | None = None
    """The ratio that iobus wants to stay at or below; None where the row is for information."""
    note: str = ""
    iobus_samples: tuple[float, ...] = ()
    """What `iobus` is the median of; empty where it is the best of several rounds."""
    peer_samples: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """iobus over peer."""
        return self.iobus / self.peer if self.iobus is not None and self.peer else None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as it is written to JSON."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


def environment() -> dict[str, Any]:
    """Return what the figures depend on, for the JSON file."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "unicorn": _distribution("unicorn"),
        "intervaltree": _distribution("intervaltree"),
        "peakrdl-python": _distribution("peakrdl-python"),
        "qemu": _qemu_version(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
    }


def table(rows: Iterable[Row]) -> str:
    """Return the rows as aligned text."""
    lines = [("name", "iobus", "peer", "ratio", "goal")]
    for row in rows:
        lines.append((
            row.name,
            _value(row.iobus, row.unit),
            f"{_value(row.peer, row.unit)} {row.peer_name}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            "-" if row.goal is None else f"{row.goal:.2f}",
        ))  # fmt: skip
        if row.note:
            lines.append((f"  ({row.note})", "", "", "", ""))
    # A note may run on into the other columns: it has nothing there.
    widths = [max(len(line[column]) for line in lines if line[1]) for column in range(5)]
    return "\n".join(
        f"{line[0]:{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:{widths[2]}}  "
        f"{line[3]:>{widths[3]}}  {line[4]:>{widths[4]}}".rstrip()
        for line in lines
    )


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if unit == "ns" else f"{value:.3f} {unit}"


def _distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _qemu_version() -> str | None:
    if shutil.which(QEMU) is None:
        return None
    # "QEMU emulator version 7.2.22 (Debian ...)"
    words = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False).stdout.split()
    return words[3] if len(words) > 3 else None
