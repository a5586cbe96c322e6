"""What holds for all tests: how fast an example is depends on the host, and is never a failure."""

from hypothesis import settings

settings.register_profile("iobus", deadline=None)
settings.load_profile("iobus")
