"""The embedded engine: guest code runs on Unicorn (QEMU's TCG as a library, from PyPI).

`UnicornEngine` is what a `Machine` is given. It chooses, once, between the two ways of running: with
guest-mode intercepts (native.py) where the library is exactly the one we know, else with its public
API only (fallback.py), and keeps why.
"""

from __future__ import annotations

import platform
import warnings
from typing import Literal

from iobus.engines.unicorn import library as uc_api
from iobus.engines.unicorn import selfcheck
from iobus.engines.unicorn.cpu import UnicornCpu
from iobus.engines.unicorn.fallback import LOST, FallbackCpu, FallbackInstance
from iobus.engines.unicorn.instance import Instance
from iobus.engines.unicorn.internals import MismatchError
from iobus.engines.unicorn.library import Library
from iobus.engines.unicorn.native import INTERCEPTS, NativeCpu
from iobus.engines.unicorn.native_instance import NativeInstance
from iobus.exits import EngineError
from iobus.irq import Irqchip
from iobus.machine import Machine
from iobus.memory import Slot
from iobus.vcpu import VCPU


class UnicornEngine:
    """Executes guest code with Unicorn 2.1.4. One engine serves one machine, whose vCPUs take turns.

    `mode="auto"` takes the fast way with intercepts if the start-up check passes, `"fallback"` the
    public API in any case, which runs 1 vCPU. Where "auto" ends with the public API, a `RuntimeWarning`
    says why and what is lost. Raises `EngineError` where the library is missing.
    """

    name = "unicorn"
    irqchip: Irqchip | None = None

    def __init__(self, mode: Literal["auto", "fallback"] = "auto") -> None:
        self.library = Library()
        self.fallback_reason: str | None = None
        """Why the fallback is used, and what it lacks; None when the fast way is."""
        self._mode = mode
        self._machine: Machine | None = None
        self._instance: Instance | None = None

    def attach(self, machine: Machine) -> None:
        """Serve `machine`."""
        if self._machine is not None:
            raise EngineError("a UnicornEngine serves one machine: make another for the next")
        self._machine = machine
        machine.memory.on_write = self._written
        machine.memory.on_protect = self._protected

    def executor(self, vcpu: VCPU) -> UnicornCpu:
        """Return what runs `vcpu`, having chosen the way of running. Raises `EngineError`."""
        if self._instance is None:
            self._instance = self._choose(vcpu.machine)
        cpu: UnicornCpu
        if isinstance(self._instance, NativeInstance):
            cpu = NativeCpu(self._instance, vcpu)
        else:
            cpu = self._fallback(self._instance, vcpu)
        cpu.init()
        return cpu

    def flush(self) -> None:
        """Nothing to do: a write reaches its device within the guest's instruction."""

    def reset(self) -> None:
        """Nothing to do: `init` of a vCPU is a reset of it."""

    def close(self) -> None:
        """End the engine's thread and free the library's instance."""
        if self._instance is not None:
            self._instance.close()

    def _choose(self, machine: Machine) -> Instance:
        try:
            self._check_host()
            selfcheck.require(self.library)
            return NativeInstance(self.library, machine, INTERCEPTS)
        except MismatchError as exc:
            reason = f"Unicorn runs without guest-mode intercepts, because {exc}"
        if len(machine.vcpus) > 1:
            raise EngineError(f"{reason}: so it runs 1 vCPU, not {len(machine.vcpus)}")
        self.fallback_reason = f"{reason}. {LOST}"
        if self._mode != "fallback":
            warnings.warn(self.fallback_reason, RuntimeWarning, stacklevel=5)
        return FallbackInstance(self.library, machine)

    def _fallback(self, instance: Instance, vcpu: VCPU) -> FallbackCpu:
        try:
            return FallbackCpu(instance, vcpu)
        except MismatchError as exc:
            raise EngineError(f"this libunicorn cannot be used: {exc}; install unicorn==2.1.4") from exc

    def _check_host(self) -> None:
        if self._mode == "fallback":
            raise MismatchError("the fallback was asked for")
        if platform.machine() not in ("x86_64", "AMD64"):
            raise MismatchError(f"the host is {platform.machine()}, and the hooks in machine code are for x86-64")
        if self.library.version != uc_api.VERSION:
            found, known = (".".join(map(str, version)) for version in (self.library.version, uc_api.VERSION))
            raise MismatchError(f"the library is Unicorn {found}, not {known}")

    def _protected(self, slot: Slot, readonly: bool) -> None:
        if self._instance is not None:
            self._instance.protect(slot, readonly)

    def _written(self, gpa: int, length: int) -> None:
        if self._instance is not None:
            self._instance.invalidate(gpa, length)
