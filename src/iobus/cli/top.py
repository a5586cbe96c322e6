"""`iobus top [PID]`: what a running guest asks of its devices, each second anew. The other end of monitor.py."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from iobus.cli.monitor import PERIOD_SECONDS, directory
from iobus.cli.outcome import Status, UsageError, printing


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `printing`, as any other failure: Rich would end the process without a word."""
        raise


_NOTHING: dict[str, Any] = {"time": 0, "regions": [], "interrupts": [], "unclaimed": []}


def top(pid: int | None) -> tuple[Status, str]:
    """Show the guest of process `pid`, or the only one there is, until it ends. Raises `UsageError`.

    On a terminal the table is live; elsewhere it is printed once, of the first second.
    """
    console = _Console()
    client, path = _connect(pid)
    with client, printing():
        snapshots = _snapshots(client, path)
        before = next(snapshots, _NOTHING)
        if not console.is_terminal:
            console.print(tables(before, next(snapshots, before), path.stem))
            return Status.OK, ""
        with Live(Text(f"guest of process {path.stem} ..."), console=console, screen=True, auto_refresh=False) as live:
            for now in snapshots:
                live.update(tables(before, now, path.stem), refresh=True)
                before = now
    return Status.OK, f"the guest of process {path.stem} has ended"


def tables(before: dict[str, Any], now: dict[str, Any], pid: str) -> Group:
    """Return what is shown of two snapshots of the guest of `pid`: totals, and rates between them."""
    seconds = max(1, now["time"] - before["time"]) / 1e9
    earlier = {tuple(row[:3]): row[3:] for row in before["regions"]}
    devices = _table("region", "bus", "base", ">reads/s", ">writes/s", ">accesses", ">mean, ns", title="devices")
    rows = []
    for bus, base, name, reads, writes, taken in now["regions"]:
        old = earlier.get((bus, base, name), (0, 0, 0))
        rows.append((reads + writes - old[0] - old[1], bus, base, name, reads, writes, taken, old))
    for _, bus, base, name, reads, writes, taken, old in sorted(rows, key=lambda row: -row[0]):
        total = reads + writes
        devices.add_row(
            Text(name), bus, f"{base:#x}", _rate(reads - old[0], seconds), _rate(writes - old[1], seconds),
            f"{total:,}", f"{taken // max(1, total):,}",
        )  # fmt: skip
    interrupts = _table("line", "source", ">interrupts/s", ">interrupts", title="interrupt lines")
    counts = {row[0]: row[2] for row in before["interrupts"]}
    for name, source, count in now["interrupts"]:
        interrupts.add_row(name, Text(source), _rate(count - counts.get(name, 0), seconds), f"{count:,}")
    unclaimed = _table("bus", "address", "access", ">times", title="claimed by nobody")
    for space, address, verb, count in now["unclaimed"]:
        unclaimed.add_row(space, f"{address:#x}", verb, f"{count:,}")
    head = Text(f"guest of process {pid}, up {now['time'] / 1e9:.1f} s; counted while this is shown", style="bold")
    return Group(head, devices, interrupts, unclaimed)


def _table(*columns: str, title: str) -> Table:
    made = Table(title=title, title_justify="left", expand=True)
    for column in columns:
        # An address is shown whole also where the terminal is narrow: the other columns give way.
        wide = 10 if column in ("base", "address") else None
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", min_width=wide)
    return made


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:,.0f}"


def _connect(pid: int | None) -> tuple[socket.socket, Path]:
    try:
        found = directory()
    except OSError as exc:
        raise UsageError(f"no guest can be found: {exc}") from exc
    paths = sorted(found.glob("*.sock")) if pid is None else [found / f"{pid}.sock"]
    alive = []
    for path in paths:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.connect(str(path))
        except OSError:
            client.close()
        else:
            alive.append((client, path))
    if len(alive) == 1:
        return alive[0]
    for client, _ in alive:
        client.close()
    if pid is not None:
        raise UsageError(f"process {pid} runs no guest of yours")
    if not alive:
        raise UsageError("no guest of yours is running; start one with iobus boot")
    raise UsageError(f"several guests are running: say which, of {', '.join(path.stem for _, path in alive)}")


def _snapshots(client: socket.socket, path: Path) -> Iterator[dict[str, Any]]:
    client.settimeout(30 * PERIOD_SECONDS)
    with client.makefile(encoding="utf-8") as lines:
        try:
            for line in lines:
                yield json.loads(line)
        except ConnectionResetError:
            return
        except TimeoutError:
            raise UsageError(f"the guest of process {path.stem} does not answer") from None
