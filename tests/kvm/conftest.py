"""Guests of other engines' tests run on KVM: a module of them asks for it with `usefixtures("way")`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rig


@pytest.fixture(scope="module")
def way() -> Iterator[str]:
    """The rig's guests run on KVM."""
    before, rig.way = rig.way, "kvm"
    yield "kvm"
    rig.way = before
