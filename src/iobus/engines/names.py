"""The names of the engines and of KVM's placements of interrupt controllers, for who must not load an engine to know.

The bottom of `engines/`.
"""

from __future__ import annotations

from typing import Final, Literal

ENGINES: Final = ("auto", "unicorn", "kvm")

Irqchip = Literal["user"]
IRQCHIPS: Final[tuple[Irqchip, ...]] = ("user",)
"""All in Python."""
