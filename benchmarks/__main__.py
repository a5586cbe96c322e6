"""`python -m benchmarks [NAME...] [--json FILE] [--quick]`: run benchmarks, print a table, write JSON.

The exit status is 0 unless a benchmark itself breaks: a ratio that misses its goal, a QEMU or a guest
that is not there are rows of the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks import boot, dispatch, guest, kvm, mmio, nested, pc, registers, testing
from benchmarks.report import Row, environment, table

BENCHMARKS: Final[dict[str, Callable[[bool], list[Row]]]] = {
    "dispatch": dispatch.run,
    "mmio": mmio.run,
    "kvm": kvm.run,
    "registers": registers.run,
    "guest": guest.run,
    "boot": boot.run,
    "nested": nested.run,
    "pc": pc.run,
    "testing": testing.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure iobus beside its peers.")
    parser.add_argument("name", nargs="*", help=f"which to run, of {', '.join(BENCHMARKS)}; by default all")
    parser.add_argument("--json", metavar="FILE", type=Path, default=Path("bench.json"), help="default: bench.json")
    parser.add_argument("--quick", action="store_true", help="little work, to see that all runs: no figures to quote")
    options = parser.parse_args(arguments)
    for name in options.name:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    rows: list[Row] = []
    broken: list[str] = []
    found = environment()
    for name in options.name or BENCHMARKS:
        print(f"benchmarks: {name}", file=sys.stderr)
        try:
            rows += BENCHMARKS[name](options.quick)
        except Exception:
            traceback.print_exc()
            broken.append(name)
    result = {**found, "quick": options.quick, "broken": broken, "rows": [row.as_dict() for row in rows]}
    print(table(rows))
    try:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as exc:
        parser.error(f"cannot write {options.json}: {exc.strerror}")
    for name in broken:
        print(f"benchmarks: {name} broke, see above", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
