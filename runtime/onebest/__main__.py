"""``python -m onebest``: the command, where its folder is not on the PATH."""

import sys

from onebest.cli import main

if __name__ == "__main__":
    sys.exit(main())
