"""Inside the nested guest: boots iobus and QEMU on KVM in turn, and prints a line of JSON for `nested.py`.

python -m benchmarks.nested_boots ROUNDS
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks import guests
from benchmarks.nested import MARK

_EXITS: Final = Path("/sys/kernel/debug/kvm/exits")
_LIMIT: Final = 600  # seconds, of one boot
_PAUSE: Final = 0.05  # seconds: there is one CPU, and who reads each character takes it from the guest


def main(rounds: str) -> None:
    """Boot `rounds` times on each side."""
    subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=True)
    boots: dict[str, list[dict[str, float]]] = {"iobus": [], "QEMU": []}
    with guests.files() as files:
        for _ in range(int(rounds)):
            for start in (
                lambda: guests.on_iobus(files, engine="kvm"),
                lambda: guests.on_qemu(files, "-vga", "std", accelerator="kvm", machine="pc,kernel-irqchip=off"),
            ):
                before = int(_EXITS.read_text())
                with start() as guest:
                    seconds = guest.wait_for(guests.UP, _LIMIT, pause=_PAUSE) - guest.start
                    exits = int(_EXITS.read_text()) - before
                boots[guest.name].append({"seconds": seconds, "exits": exits})
                print(f"{guest.name}: {seconds:.1f} s, {exits} exits", flush=True)
    print(MARK + json.dumps(boots), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
