"""`iobus engines` and `--engine auto`: what is said of a host's KVM, whatever is wrong with it, and what is taken."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest
from kvm_rig import needs_kvm

from iobus.cli import main
from iobus.engines import choose
from iobus.engines.kvm import probe, vm
from iobus.engines.kvm.engine import KvmEngine
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import EngineError


def said(capfd: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The line on KVM of `iobus engines`, and the last line."""
    assert main(["engines"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[1].startswith("unicorn  usable: version 2.1.4")
    return lines[0], lines[-1]


def cpuinfo(monkeypatch: pytest.MonkeyPatch, path: Path, flags: str) -> None:
    path.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse2\n")
    monkeypatch.setattr(probe, "CPUINFO", path)
    monkeypatch.setattr(probe, "MODULES", path.parent)


def refuse(monkeypatch: pytest.MonkeyPatch, device: Path, error: OSError) -> None:
    """Let `device` be the kernel's, and opening it fail."""
    opened = os.open

    def refusing(path: str | Path, *arguments: int) -> int:
        if str(path) == str(device):
            raise error
        return opened(path, *arguments)

    monkeypatch.setattr(vm, "DEVICE", str(device))
    monkeypatch.setattr(vm.os, "open", refusing)


def test_without_a_device_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It names the node and the modules that make it; Unicorn is taken."""
    monkeypatch.setattr(vm, "DEVICE", str(tmp_path / "kvm"))
    line, last = said(capfd)
    assert line == (
        f"kvm      cannot be used: there is no {tmp_path / 'kvm'}: the kernel has no KVM here, "
        "or its module (kvm_intel or kvm_amd) is not loaded"
    )
    assert last == "--engine auto takes unicorn"
    assert isinstance(choose.make("auto"), UnicornEngine)
    with pytest.raises(EngineError, match=r"there is no .*kvm: the kernel has no KVM here"):
        choose.make("kvm")


def test_without_permission_it_names_the_group_to_join(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A node for a group: the group's name, and the command that joins it."""
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o660)
    group = grp.getgrgid(device.stat().st_gid).gr_name
    refuse(monkeypatch, device, PermissionError(13, "Permission denied"))
    line, last = said(capfd)
    assert line.startswith(f"kvm      cannot be used: {device} may not be opened by this user; ")
    assert line.endswith(f"join the group {group!r} (usermod -aG {group} USER, then log in again)")
    assert last == "--engine auto takes unicorn"


def test_where_no_group_would_help_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A node for root alone: root must change its mode."""
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o600)
    refuse(monkeypatch, device, PermissionError(13, "Permission denied"))
    assert said(capfd)[0].endswith("its mode is 600: root must give a group read and write access to it")


def test_another_reason_is_the_kernels_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What else keeps the node from opening, in the kernel's words."""
    refuse(monkeypatch, tmp_path / "kvm", OSError(16, "Device or resource busy"))
    assert said(capfd)[0] == f"kvm      cannot be used: {tmp_path / 'kvm'} cannot be opened: Device or resource busy"


def test_a_node_that_is_something_else(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A file that opens and knows no request of KVM's is not usable."""
    monkeypatch.setattr(vm, "DEVICE", "/dev/null")
    line, last = said(capfd)
    assert line.startswith("kvm      cannot be used: the kernel refuses KVM_GET_API_VERSION: ")
    assert last == "--engine auto takes unicorn"
    assert isinstance(choose.make("auto"), UnicornEngine)


@needs_kvm
def test_openable_is_not_usable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A KVM on a CPU without VMX and SVM is for small guests: `auto` takes Unicorn, `kvm` it all the same."""
    cpuinfo(monkeypatch, tmp_path / "cpuinfo", "vme")
    line, last = said(capfd)
    assert line.startswith("kvm      for small guests only: /dev/kvm opens, but the CPU has neither VMX nor SVM: ")
    assert last == "--engine auto takes unicorn"
    assert isinstance(choose.make("auto"), UnicornEngine)
    engine = choose.make("kvm")
    assert choose.caveat(engine).startswith("this KVM is not the CPU's: /dev/kvm opens")
    engine.close()
    with pytest.raises(EngineError, match=r"irqchip 'split' is for .* kvm and KVM cannot be used here: /dev/kvm"):
        choose.make("auto", "split")


@needs_kvm
@pytest.mark.parametrize("flags", ["vmx", "svm"])
def test_a_kvm_of_the_cpus_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: str
) -> None:
    """With VMX or SVM `auto` takes KVM; not where the kernel's module works without them."""
    cpuinfo(monkeypatch, tmp_path / "cpuinfo", flags)
    line, last = said(capfd)
    assert (line, last) == ("kvm      usable: the CPU's hardware virtualisation", "--engine auto takes kvm")
    engine = choose.make("auto")
    assert isinstance(engine, KvmEngine) and choose.caveat(engine) == ""
    engine.close()
    (tmp_path / "kvm_pvm").mkdir()
    assert said(capfd)[1] == "--engine auto takes unicorn"
