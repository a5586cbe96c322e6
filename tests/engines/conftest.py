"""Tests of what a guest sees of the buses: one body of each test, run without a CPU, on Unicorn and on KVM.

A test asks for `guest` (or, with several vCPUs, `guests`), and skips on KVM where that cannot be opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from accesses import Accesses, Kind
from kvm_rig import why_not


@pytest.fixture(params=["none", "unicorn", "kvm"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Who makes the accesses."""
    if request.param == "kvm" and why_not():
        pytest.skip(why_not())
    kind: Kind = request.param
    return kind


@pytest.fixture
def guests(kind: Kind) -> Iterator[Callable[[int], Accesses]]:
    """Make a guest with so many vCPUs."""
    with ExitStack() as stack:
        yield lambda cpus: stack.enter_context(Accesses(kind, cpus))


@pytest.fixture
def guest(guests: Callable[[int], Accesses]) -> Accesses:
    """A guest with one vCPU."""
    return guests(1)
