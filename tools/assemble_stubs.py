"""Assemble src/iobus/engines/unicorn/stubs.s and write its bytes into stubs.py beside it.

Needs `as`, `objcopy` and `nm` (Debian: binutils). Run after each change of stubs.s.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "src/iobus/engines/unicorn"
NAMES = ("interrupt", "invalid", "edge", "fill", "port_in", "port_out", "syscall", "rdtsc", "table")


def assemble(source: Path = FOLDER / "stubs.s") -> tuple[bytes, dict[str, int]]:
    """Return the code and where its entries start."""
    with tempfile.TemporaryDirectory() as folder:
        obj, raw = f"{folder}/stubs.o", f"{folder}/stubs.bin"
        subprocess.run(["as", "--64", "-o", obj, str(source)], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", obj, raw], check=True)
        symbols = subprocess.run(["nm", obj], check=True, capture_output=True, text=True).stdout
        places = {name: int(at, 16) for at, kind, name in map(str.split, symbols.splitlines()) if kind == "t"}
        return Path(raw).read_bytes()[: places["end"]], {name: places[name] for name in NAMES}


def main() -> None:
    code, entries = assemble()
    target = FOLDER / "stubs.py"
    text = target.read_text()
    rows = textwrap.indent("\n".join(textwrap.wrap(code.hex(" ", 2), 100)), "    ")
    block = r'fromhex\(\n    """\n.*?\n    """'
    text = re.sub(block, lambda _: f'fromhex(\n    """\n{rows}\n    """', text, flags=re.S)
    shown = ", ".join(f'"{name}": {at:#x}' for name, at in entries.items())
    text = re.sub(r"ENTRIES: Final = \{.*?\}", lambda _: f"ENTRIES: Final = {{{shown}}}", text, flags=re.S)
    target.write_text(text)


if __name__ == "__main__":
    main()
