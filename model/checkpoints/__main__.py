"""``python -m model.checkpoints convert|describe …``; see :mod:`model.checkpoints.convert`."""

import sys

from model.checkpoints.convert import run

if __name__ == "__main__":
    sys.exit(run())
