"""Inside the nested guest: Debian's kernel boots to user space on iobus's KVM engine, with irqchips in each place."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd

SECONDS = 300
"""The time limit of one boot, in seconds; it takes 13 to 31 on a quiet machine, and a busy one is no failure."""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("iobus.engines.kvm") is None, reason="iobus has no KVM engine in this tree"
)


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(("irqchip", "cpus"), [("user", 1), ("split", 1), ("kernel", 1), ("user", 2)])
def test_linux_boots_to_user_space(irqchip: str, cpus: int, tmp_path: Path) -> None:
    """`iobus boot --engine kvm` comes to a shell script that counts the CPUs, and the guest powers off.

    `stty` waits until the console is sent: another CPU may be about to do that when this one switches off.
    """
    initrd = tmp_path / "initrd"
    script = "mount -t proc proc /proc\ncat /proc/interrupts\necho user space, $(nproc) up\nstty sane\npoweroff -f\n"
    initrd.write_bytes(busybox_initrd(debian.busybox().read_bytes(), script))
    done = subprocess.run(
        [
            sys.executable, "-m", "iobus", "boot", "--engine", "kvm", "--irqchip", irqchip, "--cpus", str(cpus),
            "--kernel", str(debian.cloud_kernel()), "--initrd", str(initrd), "--append", "quiet",
            "--timeout", str(SECONDS),
        ],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS + 20, check=False,
    )  # fmt: skip
    print(done.stdout.decode(errors="replace"))
    assert (done.returncode, done.stderr.decode(errors="replace")) == (0, "")
    assert f"user space, {cpus} up" in done.stdout.decode(errors="replace").splitlines()
