"""`python -m qlab` is the command `qlab`."""

import sys

from qlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
