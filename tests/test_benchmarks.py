"""The benchmarks run, and their JSON has the shape that docs/benchmarks.md promises. Never their times.

`dispatch`, `mmio`, `pc` and `registers` with `--quick`, as a user runs them; the others boot whole guests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The table and the JSON of one quick run."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    done = run("dispatch", "mmio", "pc", "registers", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_json_says_what_the_figures_depend_on(quick: tuple[str, dict[str, Any]]) -> None:
    """Versions, the number of CPUs, and that these are no figures to quote."""
    _, result = quick
    assert result["python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert result["unicorn"] == "2.1.4"
    assert result["cpus"] >= 1
    assert {"qemu", "intervaltree", "load", "machine"} <= result.keys()
    assert result["quick"] is True
    assert result["broken"] == []


def test_every_row_compares_or_says_why_not(quick: tuple[str, dict[str, Any]]) -> None:
    """A row has both sides and their ratio, or a note."""
    _, result = quick
    for row in result["rows"]:
        assert row["benchmark"] in ("dispatch", "mmio", "pc", "registers")
        assert row["name"]
        assert row["peer_name"]
        assert row["unit"] == "ns"
        assert row["goal"] is None or row["goal"] >= 1
        if row["note"]:
            assert row["peer"] is None
            assert row["ratio"] is None
        else:
            assert row["ratio"] == pytest.approx(row["iobus"] / row["peer"])


def test_each_peer_has_its_row(quick: tuple[str, dict[str, Any]]) -> None:
    """Dispatch is held beside the bare call, the seed's search, bisect and intervaltree; MMIO beside the binding;
    registers beside the device written by hand and beside a generated simulator.
    """
    _, result = quick
    peers: dict[str, list[str]] = {}
    for row in result["rows"]:
        peers.setdefault(row["name"], []).append(row["peer_name"])
    for name in ("dispatch, 1 device", "dispatch, 64 devices"):
        assert sorted(peers[name]) == ["bare call", "bisect", "intervaltree", "linear"]
    for name in ("MMIO read from a guest", "MMIO write from a guest"):
        assert peers[name] == ["unicorn mmio_map"]
    for name in ("register read", "register write"):
        assert peers[name] == ["written by hand"]
        assert peers[f"{name}, generated"] == ["PeakRDL-python"]


def test_table_has_a_line_for_each_row(quick: tuple[str, dict[str, Any]]) -> None:
    """The five columns, and under them what the JSON has."""
    table, result = quick
    head, *lines = table.splitlines()
    assert head.split() == ["name", "iobus", "peer", "ratio", "goal"]
    assert len(lines) >= len(result["rows"])
    for row in result["rows"]:
        assert any(line.startswith(row["name"]) and row["peer_name"] in line for line in lines)


def test_unknown_benchmark_is_refused() -> None:
    """One line that names it, status 2, and nothing is run."""
    done = run("dispach")
    assert done.returncode == 2
    assert "no benchmark 'dispach'; there are dispatch, mmio, " in done.stderr
    assert not done.stdout
