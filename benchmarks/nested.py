"""What a boot costs on KVM: iobus beside QEMU with `kernel-irqchip=off`, in the nested guest of the tests.

This side starts that guest, with QEMU carried in, and has `nested_boots.py` boot there; it brings back the figures.
Both machines have a VGA, whose text memory Linux reads and writes as it starts: each access is an exit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.nested.image import RigUnavailableError, program_archive
from tests.nested.machine import missing
from tests.nested.machine import run as run_inside

from benchmarks.report import QEMU, Row
from iobus.boot.debian import GuestUnavailableError

MARK: Final = "bench: "
"""Before the line of figures on the nested guest's console."""

_NAMES: Final = {"boot on KVM, wall": ("seconds", "s"), "boot on KVM, exits": ("exits", "exits")}
_PEER: Final = "QEMU, irqchip off"
_GOAL: Final = 1.0
_LIMIT: Final = 3600  # seconds
_FIRMWARE: Final = ("bios-256k.bin", "linuxboot_dma.bin", "kvmvapic.bin", "vgabios-stdvga.bin")


def run(quick: bool) -> list[Row]:
    """Measure and return the rows."""
    try:
        sides = _measure(1 if quick else 3)
    except (GuestUnavailableError, RigUnavailableError) as exc:
        return [Row("nested", name, unit, _PEER, goal=_GOAL, note=str(exc)) for name, (_, unit) in _NAMES.items()]
    rows = []
    for name, (key, unit) in _NAMES.items():
        iobus, peer = (tuple(boot[key] for boot in sides[side]) for side in ("iobus", "QEMU"))
        rows.append(Row("nested", name, unit, _PEER, median(iobus), median(peer), _GOAL, "", iobus, peer))
    return rows


def _measure(rounds: int) -> dict[str, list[dict[str, float]]]:
    """Boot so often on each side; return what each boot took."""
    if reason := missing():
        raise RigUnavailableError(reason)
    program = shutil.which(QEMU)
    assert program is not None
    qemu = Path(program).resolve()
    command = ["env", f"PATH=/bin:{qemu.parent}", "python", "-m", "benchmarks.nested_boots", str(rounds)]
    outcome = run_inside(command, seconds=_LIMIT, carried=program_archive([qemu], _firmware()))
    for line in outcome.console:
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
    raise RuntimeError(outcome.report())


def _firmware() -> list[Path]:
    """The files that QEMU boots a kernel with, wherever this machine has them."""
    places = [Path("/usr/share") / name for name in ("qemu", "seabios")]
    found = [path for name in _FIRMWARE for place in places if (path := place / name).exists()]
    if len({path.name for path in found}) < len(_FIRMWARE):
        raise RigUnavailableError(f"QEMU's {', '.join(_FIRMWARE)} are not all in {', '.join(map(str, places))}")
    return found
