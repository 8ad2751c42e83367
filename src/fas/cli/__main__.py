"""``python -m fas.cli``, which is what ``torchrun -m fas.cli`` runs."""

from __future__ import annotations

import sys

from fas.cli import main

if __name__ == "__main__":
    sys.exit(main())
