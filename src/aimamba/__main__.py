"""``python -m aimamba`` is ``aimamba``."""

import sys

from aimamba.cli import main

if __name__ == "__main__":
    sys.exit(main())
