"""`iobus engines`: which engines are here, which one `auto` takes, and why not the others."""

from __future__ import annotations

from iobus.cli.outcome import printing
from iobus.engines import choose


def print_engines() -> None:
    """Print a line for each engine, and the choice. Raises `LostOutputError`."""
    found, chosen = choose.survey()
    width = max(len(engine.name) for engine in found)
    with printing():
        for engine in found:
            print(f"{engine.name:{width}}  {engine.state}: {engine.what}")
        print(f"\n--engine auto takes {chosen}")
