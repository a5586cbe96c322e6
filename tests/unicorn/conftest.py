"""Guests run in both ways of the Unicorn engine: a test module asks for it with `usefixtures("way")`.

What the fallback says it cannot do (fallback.LOST) is skipped there: mark such a test `lost` with the words.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest
import rig


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lost(what): needs what the fallback of the Unicorn engine has not")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        lost = item.get_closest_marker("lost")
        if lost is not None and item.callspec.params["way"] == "fallback":  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.skip(reason=f"the fallback has not: {lost.args[0]}"))


@pytest.fixture(scope="module", params=["native", "fallback"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """With guest-mode intercepts, and with the public API only."""
    if request.param == "native" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the engine uses guest-mode intercepts on x86-64 hosts only")
    before, rig.way = rig.way, request.param
    yield request.param
    rig.way = before
