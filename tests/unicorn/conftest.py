"""The tests here run in both ways of the Unicorn engine."""

from ways import pytest_collection_modifyitems, way

__all__ = ["pytest_collection_modifyitems", "way"]
