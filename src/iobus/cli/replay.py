"""`iobus replay TRACE --device SPEC`: what a guest once asked of a device, asked again without the guest.

Above `iobus.replay`. With `--test FILE` it writes the trace's part that concerns the device beside a test for
pytest that replays it, instead of replaying it now.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from iobus.bus import Region
from iobus.cli.devices import DeviceSpec, attach_devices
from iobus.cli.outcome import Status, UsageError
from iobus.cli.trace import read_trace_file
from iobus.clock import SteppedClock
from iobus.pc.pc import Pc
from iobus.replay import ReplayError, Wanted, replay
from iobus.trace import JsonLines

_TEST: Final = '''\
"""{class_name} answers as it did when a guest accessed it: a replay of {trace_name}."""

from pathlib import Path

from iobus.testing import replay_device

HERE = Path(__file__).parent


def test_{stem}() -> None:
    """Each recorded read of {class_name} gives what the guest got."""
    difference = replay_device(HERE / {trace_name!r}, HERE / {device_file!r}, {class_name!r}, {address:#x}{more})
    assert difference is None, str(difference)
'''


def replay_trace(trace: Path, spec: DeviceSpec, region: str | None) -> tuple[Status, str]:
    """Replay and return the status and a sentence. Raises `UsageError`, `DeviceError`."""
    pc = Pc(clock=SteppedClock())
    try:
        device = attach_devices(pc, [spec])[0]
        difference = replay(read_trace_file(trace), pc.machine, region_of(pc, device), name=region)
    except ReplayError as exc:
        raise UsageError(f"{trace}: {exc}; --region names it") from exc
    finally:
        pc.machine.close()
    if difference is not None:
        return Status.FAILED, f"{trace}: {difference}"
    return Status.OK, ""


def region_of(pc: Pc, device: object) -> Region:
    """Return the region of `device` on the machine's bus."""
    return next(region for region in pc.machine.mmio.regions if region.device is device)


def write_test(trace: Path, spec: DeviceSpec, region: str | None, test: Path) -> tuple[Status, str]:
    """Write the test and its trace. Raises `UsageError`."""
    stem = test.stem.removeprefix("test_")
    if test.suffix != ".py" or not test.stem.startswith("test_") or not stem.isidentifier():
        raise UsageError(f"--test {test}: pytest looks for files named test_NAME.py")
    kept = test.with_suffix(".jsonl")
    for path in (test, kept):
        if path.exists():
            raise UsageError(f"--test {test}: {path} exists already; remove it, or choose another name")
    pc = Pc(clock=SteppedClock())
    try:
        name = region or region_of(pc, attach_devices(pc, [spec])[0]).name
    finally:
        pc.machine.close()
    wanted = Wanted(name, one=region is None)
    records = [record for record in read_trace_file(trace) if wanted.takes(record)]
    try:
        wanted.check()
    except ReplayError as exc:
        raise UsageError(f"{trace}: {exc}; --region names it") from None
    more = "" if spec.length is None else f", length={spec.length:#x}"
    more += f", options={spec.options!r}" if spec.options else ""
    more += "" if region is None else f", region={region!r}"
    try:
        with kept.open("w", encoding="utf-8") as file:
            sink = JsonLines(file)
            for record in records:
                sink(record)
        test.write_text(_TEST.format(
            class_name=spec.name, trace_name=kept.name, stem=stem, address=spec.address, more=more,
            device_file=os.path.relpath(spec.file.resolve(), test.resolve().parent),
        ))  # fmt: skip
    except OSError as exc:
        raise UsageError(f"--test {test}: {exc.filename} cannot be written: {exc.strerror}") from exc
    return Status.OK, f"wrote {test} and {kept}, with {len(records)} accesses of {name}"
