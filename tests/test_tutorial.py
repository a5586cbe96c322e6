"""docs/tutorial.md, done as it says: its files in a directory of their own, its tests, its sessions in the guest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_rig import iobus

from iobus.boot import debian
from iobus.boot.initrd import busybox_initrd

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
FILES = dict(re.findall(r'```python title="([\w.]+)"\n(.*?)```', PAGE, re.DOTALL))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with every file that the page shows."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def commands(device: str) -> tuple[str, list[str]]:
    """What is typed in the guest's session after `device` is booted, and what is shown."""
    session = PAGE[PAGE.index(f"--device {device}") :]
    lines = session[session.index("\n# ") + 1 : session.index("\n```", session.index("\n# "))].splitlines()
    return "\n".join(line[2:] for line in lines if line[0] == "#"), [line for line in lines if line[0] != "#"]


def test_the_last_device_is_short() -> None:
    """Two registers and an interrupt that Linux counts, in less than 30 lines."""
    assert len(FILES["bell.py"].splitlines()) < 30


@pytest.mark.slow
def test_the_tests_of_the_page_pass(project: Path) -> None:
    """As a project has them that only installed iobus and pytest, those with a guest too."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(project)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and re.search(r"^\d+ (passed|skipped)", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("device", ["my.py:MyDevice@0xD0000000:0x1000", "bell.py:Bell@0xD0000000"])
def test_the_sessions_of_the_page(project: Path, device: str) -> None:
    """What is typed in the guest gives what the page shows."""
    typed, shown = commands(device)
    try:
        debian.cloud_kernel()
        busybox = debian.busybox().read_bytes()
    except debian.GuestUnavailableError as exc:
        pytest.skip(f"no guest: {exc}")
    script = f"mount -t proc proc /proc\necho BEGIN\n{typed}\necho END\npoweroff -f\n"
    initrd = project / "initrd"
    initrd.write_bytes(busybox_initrd(busybox, script))
    done = iobus("boot", "--device", f"{project}/{device}", "--initrd", initrd, "--append", "quiet", "--timeout", 120)
    lines = done.stdout.decode(errors="replace").replace("\r", "").splitlines()
    assert lines[lines.index("BEGIN") + 1 : lines.index("END")] == shown
