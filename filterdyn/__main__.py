"""`python -m filterdyn` is the command `filterdyn`."""

import sys

from filterdyn.streams.command import main

if __name__ == "__main__":
    sys.exit(main())
