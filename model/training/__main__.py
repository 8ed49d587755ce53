"""``python -m model.training contrastive|separation …``; see :mod:`model.training.cli`."""

from model.training.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
