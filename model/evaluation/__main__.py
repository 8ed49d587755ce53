"""``python -m model.evaluation``; see :mod:`model.evaluation.cli`."""

from model.evaluation.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
