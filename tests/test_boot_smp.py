"""Debian's unmodified 64-bit kernel on several CPUs under `iobus boot`: it starts them all and works them all."""

import re
from pathlib import Path

import pytest
from cli_rig import Files, iobus

from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd

pytestmark = pytest.mark.slow

SECONDS = 240

# Each CPU has a shell bound to it, whose pipes wake others; then CPU 1 is stopped and started again.
SCRIPT = r"""
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "nproc: $(nproc)"
cpu=0
while [ $cpu -lt $(nproc) ]; do
    taskset $(printf %x $((1 << cpu))) sh -c '
        i=0
        while [ $i -lt 10 ]; do echo | cat >/dev/null; i=$((i + 1)); done
        echo "worked: $(cut -d " " -f 39 /proc/self/stat)"
    ' &
    cpu=$((cpu + 1))
done
wait
for state in 0 1; do
    echo $state >/sys/devices/system/cpu/cpu1/online
    echo "online: $(cat /sys/devices/system/cpu/online)"
done
echo "clocksource: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
grep "^core id" /proc/cpuinfo
cat /proc/interrupts
stty sane  # waits until the console is sent: another CPU may be about to do that
poweroff -f
"""
COMPLAINTS = re.compile(
    r"TSC unstable|TSC warp|soft lockup|LOCKUP|detected stalls|WARNING|BUG:|Call Trace|\[Firmware Bug\]"
    r"|not responding|failed to report"
)


@pytest.fixture(scope="session")
def busybox() -> bytes:
    try:
        debian.cloud_kernel()
        return debian.busybox().read_bytes()
    except debian.GuestUnavailableError as exc:
        pytest.skip(f"no guest: {exc}")


@pytest.mark.parametrize("cpus", [2, 4])
def test_linux_works_on_all_cpus(cpus: int, busybox: bytes, tmp_path: Path) -> None:
    """All are online, each runs what is bound to it; they interrupt each other, and no kernel watchdog complains."""
    initrd = Files(tmp_path).write("initrd", busybox_initrd(busybox, SCRIPT))
    done = iobus("boot", "--cpus", cpus, "--initrd", initrd, "--timeout", SECONDS)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode(errors="replace").splitlines()
    assert f"nproc: {cpus}" in shown
    assert {line for line in shown if line.startswith("worked: ")} == {f"worked: {cpu}" for cpu in range(cpus)}
    others = {2: "0", 4: "0,2-3"}[cpus]
    assert [line for line in shown if line.startswith("online: ")] == [f"online: {others}", f"online: 0-{cpus - 1}"]
    assert "clocksource: tsc" in shown
    assert [line.split()[-1] for line in shown if line.startswith("core id")] == [str(cpu) for cpu in range(cpus)]
    counts = {
        match[1]: match[2].split() for line in shown if (match := re.fullmatch(r" *(\w+):((?: +\d+)+)  .*", line))
    }
    for row in ("LOC", "RES", "CAL"):
        assert len(counts[row]) == cpus and all(int(count) > 0 for count in counts[row]), counts[row]
    assert not [line for line in shown if COMPLAINTS.search(line)]


def test_linux_sees_sixteen_cpus(busybox: bytes, tmp_path: Path) -> None:
    """The most that iobus promises, each started by INIT and start-up messages."""
    script = (
        'mount -t proc proc /proc\necho "nproc: $(nproc)"\ngrep -c ^processor /proc/cpuinfo\nstty sane\npoweroff -f\n'
    )
    initrd = Files(tmp_path).write("initrd", busybox_initrd(busybox, script))
    done = iobus("boot", "--cpus", 16, "--initrd", initrd, "--timeout", SECONDS)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode(errors="replace").splitlines()
    assert "nproc: 16" in shown and "16" in shown
    assert not [line for line in shown if COMPLAINTS.search(line)]
