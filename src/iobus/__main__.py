"""`python -m iobus`: the same as the command `iobus`."""

import sys

from iobus.cli import main

if __name__ == "__main__":
    sys.exit(main())
