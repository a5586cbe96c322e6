"""A recorded trace as a test: `replay_device`, which `iobus replay --test` writes calls of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from iobus.cli.devices import DeviceSpec, attach_devices
from iobus.cli.trace import read_trace_file
from iobus.clock import SteppedClock
from iobus.pc.pc import Pc
from iobus.replay import Difference, replay


def replay_device(
    trace: Path,
    device_file: Path,
    class_name: str,
    address: int,
    *,
    length: int | None = None,
    options: Mapping[str, int | bool | str] | None = None,
    region: str | None = None,
) -> Difference | None:
    """Replay a `*.jsonl` trace on a new device of a file, on a PC without a CPU; return the first difference.

    `address`, `length` in bytes and `options` are those of `iobus boot --device`; `region` is the device's name
    in the trace where it differs, or `NAME@BASE` where several have it. Raises what is wrong with the files as
    `IobusError`, `DeviceError` when the device raises.
    """
    spec = DeviceSpec(str(device_file), Path(device_file), class_name, address, length, dict(options or {}))
    pc = Pc(clock=SteppedClock())
    try:
        device = attach_devices(pc, [spec])[0]
        found = next(claim for claim in pc.machine.mmio.regions if claim.device is device)
        return replay(read_trace_file(Path(trace)), pc.machine, found, name=region)
    finally:
        pc.machine.close()
