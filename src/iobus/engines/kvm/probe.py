"""Whether the KVM here is one to choose: openable is not usable.

Beside `engine.py`; `engines/choose.py` asks. There are KVMs without the CPU's help: where neither VMX nor SVM is
there, guest code runs in rings and page tables of the host's kernel, or in its instruction emulator. Small guests
run on them, and give every exit, but Linux does not get far, and interrupts arrive late.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

from iobus.engines.kvm.vm import DEVICE, Vm
from iobus.exits import EngineError

CPUINFO: Final = Path("/proc/cpuinfo")
MODULES: Final = Path("/sys/module")


def why_not_chosen() -> str:
    """Say why `auto` does not take KVM here; "" if it does."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the guests are x86, and this machine is {platform.machine()}"
    try:
        Vm().close()
    except EngineError as exc:
        return str(exc)
    return not_hardware()


def not_hardware() -> str:
    """Say why this KVM does not use the CPU's virtualisation; "" if it does."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[-1].split()}
    if flags & {"vmx", "svm"} and not (MODULES / "kvm_pvm").is_dir():
        return ""
    return (
        f"{DEVICE} opens, but the CPU has neither VMX nor SVM: small guests run, in page tables of the kernel's own or "
        "in its instruction emulator, and Linux does not"
    )
