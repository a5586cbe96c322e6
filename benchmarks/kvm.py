"""What an exit of KVM costs on iobus, beside a loop in C; doorbells and coalesced writes beside a plain exit.

A loop of 32-bit reads, or writes, of one register, in 32-bit protected mode without paging: the same bytes on both
sides. iobus's side is a whole PC on `/dev/kvm`, from the exit to the device and back. The other is `kvm_loop.c`, which
the system's compiler makes on the spot: a system call, a comparison and a copy, and nothing else.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.device import SCRATCH, MyDevice
from benchmarks.mmio import DEVICE_AT, LENGTH, READS, WRITES, best, run_loop
from benchmarks.report import Row
from iobus.engines.kvm.engine import KvmEngine
from iobus.exits import EngineError
from iobus.pc.pc import MINIMUM_MEMORY, Pc

_SOURCE: Final = Path(__file__).with_name("kvm_loop.c")
_EXITS: Final = {"MMIO read exit": READS, "MMIO write exit": WRITES}
_IN_C: Final = "a loop in C"
_GOAL: Final = 1.15


def run(quick: bool) -> list[Row]:
    """Measure, and return the rows."""
    rounds, accesses = (2, 1_000) if quick else (60, 5_000)
    try:
        engine = KvmEngine()
    except EngineError as exc:
        return [Row("kvm", name, "ns", _IN_C, goal=_GOAL, note=str(exc)) for name in _EXITS]
    rows: list[Row] = []
    device = MyDevice()
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Pc(engine, memory=MINIMUM_MEMORY).machine)
        region = machine.mmio.attach(device, DEVICE_AT, LENGTH)

        def plain(code: bytes, count: int) -> int:
            return run_loop(machine, code, count)

        in_c = None if (missing := _missing()) else stack.enter_context(_loop_in_c())
        for name, code in _EXITS.items():
            figures = best((plain,) if in_c is None else (plain, in_c), code, accesses, rounds)
            rows.append(Row("kvm", name, "ns", _IN_C, figures[0], *figures[1:], goal=_GOAL, note=missing))
        bell = region.doorbell(SCRATCH, 4)
        rung = best((plain,), WRITES, accesses, rounds)[0]
        if bell.take() != rounds * accesses + 100:
            raise RuntimeError("the doorbell was not rung as often as the guest wrote")
        rows.append(Row("kvm", "doorbell", "ns", "a write exit", rung, rows[1].iobus))
        bell.close()
        region.coalesce = True
        batched = best((plain,), WRITES, accesses, rounds)[0]
        rows.append(Row("kvm", "coalesced write", "ns", "a write exit", batched, rows[1].iobus))
    if device.scratch != 1:
        raise RuntimeError(f"the last writes left {device.scratch} in SCRATCH, not 1")
    return rows


def _missing() -> str:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "no C compiler (cc, gcc or clang) is installed"
    return "" if Path("/usr/include/linux/kvm.h").exists() else "linux/kvm.h is not installed (Debian: linux-libc-dev)"


@contextlib.contextmanager
def _loop_in_c() -> Iterator[Callable[[bytes, int], int]]:
    """Compile the loop in C, and give what runs a guest in it."""
    compiler = next(name for name in ("cc", "gcc", "clang") if shutil.which(name))
    with tempfile.TemporaryDirectory(prefix="iobus-bench-") as directory:
        program = Path(directory, "kvm_loop")
        subprocess.run([compiler, "-O2", "-Wall", "-o", program, _SOURCE], check=True)
        with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            stdin, stdout = process.stdin, process.stdout

            def guest(code: bytes, count: int) -> int:
                stdin.write(f"{code.hex()} {count}\n")
                stdin.flush()
                answer = stdout.readline().split()
                if len(answer) != 2 or (code is WRITES and answer[1] != "1"):
                    raise RuntimeError(f"the loop in C did not reach its end: {answer}")
                return int(answer[0])

            yield guest
            stdin.close()
