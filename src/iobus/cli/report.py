"""`iobus report TRACE.jsonl`: a run as one HTML page that needs nothing else, to open in any browser.

The numbers are made here, bounded whatever the trace holds; report.html draws them.
"""

from __future__ import annotations

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Final

from iobus.cli.outcome import Status, UsageError
from iobus.cli.trace import read_trace_file
from iobus.trace import Record

_BUCKETS: Final = 160
_REGIONS, _CELLS, _SLOWEST, _UNCLAIMED = 64, 96, 25, 100
_NOBODY: Final = "(unclaimed)"
_Key = tuple[str, str, int]  # a region's name, space and base


def write_report(trace: Path, output: Path) -> tuple[Status, str]:
    """Write the report of `trace` to `output`. Raises `UsageError`."""
    page = html(summary(read_trace_file(trace), trace.name))
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"report {output} cannot be written: {exc.strerror}") from exc
    return Status.OK, f"wrote {output}"


def html(data: dict[str, Any]) -> str:
    """Return the page for what `summary` gave."""
    # A name in a trace may be anything: no "<" can end the script that holds it.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = resources.files("iobus.cli").joinpath("report.html").read_text(encoding="utf-8")
    return template.replace("{{data}}", text)


class _Region:
    """What is counted for one region at one base: several may have a name."""

    def __init__(self, record: Record) -> None:
        self.device, self.space = record.device or "", record.space
        self.reads = self.writes = self.taken = self.most = 0
        self.times = array("Q")
        self.cells: Counter[tuple[int, str]] = Counter()

    def add(self, record: Record) -> None:
        self.reads += not record.is_write
        self.writes += record.is_write
        self.taken += record.taken
        self.most = max(self.most, record.taken)
        self.times.append(min(record.time, (1 << 64) - 1))
        where = record.offset if record.region is not None else record.address
        self.cells[where, " ".join(register.name for register in record.registers)] += 1


def summary(records: Iterable[Record], title: str) -> dict[str, Any]:
    """Count `records` by region, time and offset, with the slowest and the unclaimed ones. Raises `UsageError`."""
    regions: dict[_Key, _Region] = {}
    slowest: list[tuple[int, int, Record]] = []
    unclaimed: Counter[tuple[str, int, str]] = Counter()
    vcpus, count = set(), 0
    for record in records:
        count += 1
        key = _key(record)
        if key not in regions:
            regions[key] = _Region(record)
        regions[key].add(record)
        vcpus.add(record.vcpu)
        heapq.heappush(slowest, (record.taken, -count, record))
        if len(slowest) > _SLOWEST:
            heapq.heappop(slowest)
        if record.region is None:
            unclaimed[record.space, record.address, "write" if record.is_write else "read"] += 1
    if not regions:
        raise UsageError(f"{title} has no access: there is nothing to report")
    names = Counter(name for name, _, _ in regions)

    def label(key: _Key) -> str:
        return key[0] if names[key[0]] == 1 else f"{key[0]} @ {key[2]:#x}"

    ranked = sorted(regions.items(), key=lambda item: -len(item[1].times))[:_REGIONS]
    start = min(min(region.times) for region in regions.values())
    end = max(max(region.times) for region in regions.values())
    step = max(1, -(-(end - start + 1) // _BUCKETS))
    return {
        "title": title, "nobody": _NOBODY, "accesses": count, "vcpus": len(vcpus), "start": start, "step": step,
        "buckets": _BUCKETS,
        "regions": [
            {
                "name": label(key), "device": region.device, "space": region.space, "reads": region.reads,
                "writes": region.writes, "taken": region.taken, "most": region.most,
                "times": _histogram(region.times, start, step),
                "cells": [[hex(offset), names, n] for (offset, names), n in region.cells.most_common(_CELLS)],
            }
            for key, region in ranked
        ],
        "slowest": [_plain(record, label(_key(record))) for _, _, record in sorted(slowest, reverse=True)],
        "unclaimed": [
            [space, hex(address), verb, n] for (space, address, verb), n in unclaimed.most_common(_UNCLAIMED)
        ],
    }  # fmt: skip


def _key(record: Record) -> _Key:
    return (_NOBODY, "", 0) if record.region is None else (record.region, record.space, record.base)


def _plain(record: Record, region: str) -> dict[str, Any]:
    """An access as the page's table has it."""
    return {
        "time": record.time, "vcpu": record.vcpu, "verb": "write" if record.is_write else "read", "size": record.size,
        "region": region, "address": hex(record.address), "value": hex(record.value),
        "registers": " ".join(register.text for register in record.registers), "taken": record.taken,
    }  # fmt: skip


def _histogram(times: array[int], start: int, step: int) -> list[int]:
    counts = [0] * _BUCKETS
    for time in times:
        counts[(time - start) // step] += 1
    return counts
