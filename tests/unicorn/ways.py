"""Guests run in both ways of the Unicorn engine: a test module asks for it with `usefixtures("way")`.

What the fallback says it cannot do (fallback.LOST) is skipped there: mark such a test `lost` with the words.
For the conftest.py of each directory with such tests.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest
import rig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        lost, call = item.get_closest_marker("lost"), getattr(item, "callspec", None)
        if lost is not None and call is not None and call.params.get("way") == "fallback":
            item.add_marker(pytest.mark.skip(reason=f"the fallback has not: {lost.args[0]}"))


@pytest.fixture(scope="module", params=["native", "fallback"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """With guest-mode intercepts, and with the public API only."""
    if request.param == "native" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the engine uses guest-mode intercepts on x86-64 hosts only")
    before, rig.way = rig.way, request.param
    yield request.param
    rig.way = before
