"""`python -m iobus`: the command."""

import sys

from iobus.cli import main

sys.exit(main())
