"""Which engine executes the guest: what this machine has, what `auto` takes, and why not the others.

Above `unicorn/` and `kvm/`; for the command, and for whoever wants an engine by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iobus.engines.kvm import probe
from iobus.engines.kvm.engine import KvmEngine
from iobus.engines.names import ENGINES, Placement
from iobus.engines.unicorn.engine import UnicornEngine
from iobus.exits import EngineError
from iobus.machine import Machine

AnyEngine = UnicornEngine | KvmEngine


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be said of one engine on this machine."""

    name: str
    state: Literal["usable", "for small guests only", "cannot be used"]
    what: str
    """What it is like here, or why it is not usable: a clause without a full stop."""


def make(name: str = "auto", irqchip: Placement | None = None) -> AnyEngine:
    """Return a new engine of one of `ENGINES`. Raises `EngineError` where it cannot be used.

    `irqchip` is where the interrupt controllers are, as of `KvmEngine`; Unicorn has them in Python, which is "user".
    """
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}; use {', '.join(ENGINES)}")
    if name == "kvm" or (name == "auto" and not probe.why_not_chosen()):
        return KvmEngine(irqchip or "user")
    if irqchip not in (None, "user"):
        why = probe.why_not_chosen()
        reason = f" and KVM cannot be used here: {why}" if name == "auto" and why else ""
        raise EngineError(f"irqchip {irqchip!r} is for the engine kvm{reason}; use 'user'")
    return UnicornEngine()


def why_no_guest(name: str) -> str:
    """Say why a Linux does not run on an engine here, which `make` may make all the same; "" if it does."""
    if name == "none":
        return "it needs a CPU"
    return probe.why_not_chosen() if name == "kvm" else ""


def caveat(engine: AnyEngine) -> str:
    """Say what an engine that runs a machine lacks on this host; "" if nothing."""
    if isinstance(engine, KvmEngine):
        lacks = probe.not_hardware()
        return f"this KVM is not the CPU's: {lacks}" if lacks else ""
    if engine.fallback_reason is None:
        return ""
    return (
        f"the unicorn engine falls back to the library's public API ({engine.fallback_reason}): it is slower, there is "
        "no x2APIC or TSC-deadline timer, and interrupts come at less exact moments"
    )


def survey() -> tuple[list[Found], str]:
    """Return what there is, and the name that `auto` stands for ("none" where it would fail)."""
    found = [_kvm(), _unicorn()]
    return found, next((engine.name for engine in found if engine.state == "usable"), "none")


def _kvm() -> Found:
    try:
        KvmEngine().close()
    except EngineError as exc:
        return Found("kvm", "cannot be used", str(exc))
    if lacks := probe.why_not_chosen():
        return Found("kvm", "for small guests only", lacks)
    return Found("kvm", "usable", "the CPU's hardware virtualisation")


def _unicorn() -> Found:
    try:
        engine = UnicornEngine()
        Machine(engine).close()
    except EngineError as exc:
        return Found("unicorn", "cannot be used", str(exc))
    version = ".".join(map(str, engine.library.version))
    if engine.fallback_reason is not None:
        return Found("unicorn", "usable", f"version {version}: {engine.fallback_reason}")
    return Found("unicorn", "usable", f"version {version}, with guest-mode intercepts")
