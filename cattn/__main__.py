"""``python -m cattn``: the command line."""

import sys

from cattn._cli import main

if __name__ == "__main__":
    sys.exit(main())
