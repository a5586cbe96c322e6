"""Ctrl-C in a test whose device hangs on an engine's thread: the run of pytest ends, in real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROMPT = 50.0
"""Seconds, half the time limit of the tests: what pytest does at the end takes its time where a device spins."""

TEST = """\
import time
import pytest

class Hangs:
    length = 0x1000

    def read(self, offset, size):
        return 0

    def write(self, offset, size, value):
        print("hangs", flush=True)
        while value:
            pass
        time.sleep(1000)

@pytest.mark.iobus_engine("unicorn", "kvm")
def test_bus(bus):
    bus.time_limit = 100
    bus.attach(Hangs(), 0xD0000000)
    bus.write(0xD0000000, 4, VALUE)

def test_guest(guest):
    guest.time_limit = 100
    guest.attach(Hangs(), at=0xD0000000)
    guest.run("devmem 0xD0000000 32 VALUE")

def test_never_run():
    pass
"""


def interrupted(directory: Path, which: str, value: int, times: int) -> tuple[str, float]:
    """Run one test until its device hangs, press Ctrl-C so often; return what pytest says, and the seconds it took."""
    text = TEST.replace("VALUE", str(value))
    if times > 1:  # so that it is the second that ends it
        text = f"from iobus import hung\nhung.GRACE = 1e6\n{text}"
    (directory / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-k", f"{which} or never", "test_it.py"]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if "hangs" in line:
                break
            if "no engine" in line or "no guest" in line:
                pytest.skip(line)
        start = time.monotonic()
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        said += process.communicate(timeout=60)[0]
        return said, time.monotonic() - start
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("value", "times"), [(0, 2), (1, 1)])
def test_ctrl_c_under_bus(tmp_path: Path, value: int, times: int) -> None:
    """A device that sleeps, or spins: one Ctrl-C ends the run after the grace, a second one at once."""
    said, took = interrupted(tmp_path, "bus and unicorn", value, times)
    assert "KeyboardInterrupt" in said and "passed" not in said
    assert took < PROMPT


def test_ctrl_c_under_bus_on_kvm(tmp_path: Path) -> None:
    """The same on the CPU of the host."""
    from iobus.engines import choose
    from iobus.exits import EngineError

    try:
        choose.make("kvm").close()
    except EngineError as exc:
        pytest.skip(f"no KVM: {exc}")
    said, took = interrupted(tmp_path, "bus and kvm", 0, 2)
    assert "KeyboardInterrupt" in said and took < PROMPT


@pytest.mark.slow
def test_ctrl_c_under_guest(tmp_path: Path) -> None:
    """A guest's device: the guest is given up, and nothing waits for it."""
    said, took = interrupted(tmp_path, "guest", 0, 1)
    assert "KeyboardInterrupt" in said and "passed" not in said
    assert took < PROMPT
