"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from fas.errors import ConfigError

UNITS = {"B": 1} | {
    f"{prefix}{kind}": base ** (power + 1)
    for kind, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT")
}
_KNOWN = {unit.lower(): worth for unit, worth in UNITS.items()}


def bytes_in(size: int | str) -> int:
    """``size`` in bytes: a whole number, or a number with one of `UNITS`. Raises `ConfigError` for anything else, or 0.

    >>> bytes_in("2 GiB"), bytes_in("1.5kb"), bytes_in(4096), bytes_in("4096")
    (2147483648, 1500, 4096, 4096)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", str(size).lower())
    worth = None if found is None or isinstance(size, bool) else _KNOWN.get(found[2] or "b")
    if found is None or worth is None or (total := int(float(found[1]) * worth)) < 1:
        raise ConfigError(
            f"memory limit {size!r} is no amount of memory; give bytes above 0, or a number with a unit, such as 500MB or 2GiB"
        )
    return total


def in_words(size: float) -> str:
    """Bytes as people say them.

    >>> in_words(999), in_words(12_345_678), in_words(3 * 2**30)
    ('999 B', '11.8 MiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
