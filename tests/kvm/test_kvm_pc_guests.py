"""The guests on the whole PC (tests/guests) on KVM, with the interrupt controllers in Python."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rig
from kvm_rig import needs_hardware
from test_pc_apic import *  # noqa: F403
from test_pc_events import *  # noqa: F403
from test_pc_ioapic import *  # noqa: F403

pytestmark = [needs_hardware, pytest.mark.usefixtures("way")]


@pytest.fixture(scope="module")
def way() -> Iterator[str]:
    """The rig's guests run on KVM."""
    before, rig.way = rig.way, "kvm"
    yield rig.way
    rig.way = before
