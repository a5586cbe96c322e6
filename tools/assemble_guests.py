"""Assemble the guests of tests and benchmarks: NAME.s becomes NAME.hex beside it, its symbols and its bytes.

Needs `as`, `ld`, `objcopy` and `nm` (Debian: binutils). Run after each change of a source; the .hex files are
kept, so that tests need no assembler.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "guests"
BASE = 0x10000
"""Where a guest is linked, and loaded, whose source does not set BASE."""


def assemble(source: Path) -> str:
    """Return what belongs in the .hex file of a source."""
    with tempfile.TemporaryDirectory() as folder:
        obj, elf, raw = (f"{folder}/guest.{kind}" for kind in ("o", "elf", "bin"))
        subprocess.run(["as", "--64", "-I", str(FOLDER), "-o", obj, str(source)], check=True)
        own = re.search(r"^\s*\.set BASE, (\w+)", source.read_text(), re.MULTILINE)
        base = int(own[1], 0) if own is not None else BASE
        link = ["ld", "-m", "elf_x86_64", "--no-warn-rwx-segments", "-N", f"-Ttext={base:#x}", f"--entry={base:#x}"]
        subprocess.run([*link, "-o", elf, obj], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, raw], check=True)
        lines = subprocess.run(["nm", elf], check=True, capture_output=True, text=True).stdout.splitlines()
        symbols = sorted((int(at, 16), name) for at, kind, name in map(str.split, lines) if kind in "tT")
        code = Path(raw).read_bytes()
    assert b"\0" * 256 not in code, f"{source.name}: put what is large elsewhere"
    listing = [f"{at:x} {name}" for at, name in symbols if not name.startswith(("_", ".", "L"))]
    return "\n".join((*listing, "", *textwrap.wrap(code.hex(" ", 4), 116), ""))


def sources() -> list[Path]:
    """Return all of them."""
    return sorted((*FOLDER.glob("*.s"), *(ROOT / "benchmarks").glob("*.s")))


def main() -> None:
    for source in sources():
        source.with_suffix(".hex").write_text(assemble(source))


if __name__ == "__main__":
    main()
