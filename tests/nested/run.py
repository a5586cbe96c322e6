"""The nested rig by hand: `python -m tests.nested.run [OPTION...] (--kvm-smoke | -- COMMAND [ARGUMENT...])`.

Stands on `machine.py`; docs/testing-nested.md is its manual.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from iobus.boot.debian import GuestUnavailableError
from iobus.cli import values

from .image import HERE, PROJECT, RigUnavailableError, image
from .machine import run

SMOKE: Final = ("pytest", f"tests/{HERE.name}/inside/kvm_smoke.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; return the job's status, or 124 if it did not end, 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.nested.run", description="Run a command where /dev/kvm works: in a guest of QEMU's TCG."
    )
    parser.add_argument("--tree", metavar="DIR", type=Path, default=PROJECT, help="the project to carry in")
    parser.add_argument("--cpus", metavar="N", type=int, default=1, help="CPUs of the guest (default: 1)")
    parser.add_argument("--timeout", metavar="SECONDS", type=values.seconds, default=600.0, help="limit (default: 600)")
    parser.add_argument("--kvm-smoke", action="store_true", help="run the test that /dev/kvm works inside")
    parser.add_argument("command", nargs="*", help="such as: pytest tests/kvm")
    options = parser.parse_args(arguments)
    if options.kvm_smoke == bool(options.command):
        parser.error("give a command after --, or --kvm-smoke")
    if not (options.tree / "src" / "iobus").is_dir():
        parser.error(f"--tree {options.tree} is not this project: it has no src/iobus")
    if options.cpus < 1:
        parser.error(f"--cpus {options.cpus}: give 1 or more")
    try:
        begun = time.monotonic()
        image()
        _say(f"made the image in {time.monotonic() - begun:.1f} s")
        outcome = run(
            SMOKE if options.kvm_smoke else options.command,
            seconds=options.timeout, tree=options.tree.resolve(), cpus=options.cpus,
            shown=functools.partial(print, flush=True),
        )  # fmt: skip
    except (RigUnavailableError, GuestUnavailableError) as exc:
        parser.error(str(exc))
    _say(f"ended after {outcome.seconds:.1f} s")
    if outcome.problem:
        _say(outcome.report())
    return 124 if outcome.status is None else outcome.status


def _say(text: str) -> None:
    print(f"nested: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
