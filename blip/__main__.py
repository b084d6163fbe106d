"""``python -m blip`` is ``blip``: how one role starts another without a PATH."""

import sys

from blip.cli import main

if __name__ == "__main__":
    sys.exit(main())
