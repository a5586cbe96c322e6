"""Assemble the test guests: tests/guests/NAME.s becomes NAME.hex beside it, its symbols and its bytes.

Needs `as`, `ld`, `objcopy` and `nm` (Debian: binutils). Run after each change of a source; the .hex files are
kept, so that tests need no assembler.
"""

from __future__ import annotations

import subprocess
import tempfile
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "tests" / "guests"
BASE = 0x10000
"""Where a guest is linked, and loaded."""


def assemble(source: Path) -> str:
    """Return what belongs in the .hex file of a source."""
    with tempfile.TemporaryDirectory() as folder:
        obj, elf, raw = (f"{folder}/guest.{kind}" for kind in ("o", "elf", "bin"))
        subprocess.run(["as", "--64", "-I", str(FOLDER), "-o", obj, str(source)], check=True)
        link = ["ld", "-m", "elf_x86_64", "--no-warn-rwx-segments", "-N", f"-Ttext={BASE:#x}", f"--entry={BASE:#x}"]
        subprocess.run([*link, "-o", elf, obj], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, raw], check=True)
        lines = subprocess.run(["nm", elf], check=True, capture_output=True, text=True).stdout.splitlines()
        symbols = sorted((int(at, 16), name) for at, kind, name in map(str.split, lines) if kind in "tT")
        code = Path(raw).read_bytes()
    assert b"\0" * 256 not in code, f"{source.name}: put what is large elsewhere"
    listing = [f"{at:x} {name}" for at, name in symbols if not name.startswith(("_", ".", "L"))]
    return "\n".join((*listing, "", *textwrap.wrap(code.hex(" ", 4), 116), ""))


def main() -> None:
    for source in sorted(FOLDER.glob("*.s")):
        source.with_suffix(".hex").write_text(assemble(source))


if __name__ == "__main__":
    main()
