"""The names of the engines and of KVM's placements of interrupt controllers, for who must not load an engine to know.

The bottom of `engines/`.
"""

from __future__ import annotations

from typing import Final, Literal

ENGINES: Final = ("auto", "unicorn", "kvm")

Placement = Literal["user", "split", "kernel"]
IRQCHIPS: Final[tuple[Placement, ...]] = ("user", "split", "kernel")
"""All in Python; the LAPICs in the kernel; all in the kernel."""
