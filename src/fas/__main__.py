"""``python -m fas``, for where the script ``fas`` is not on the path."""

from fas.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
