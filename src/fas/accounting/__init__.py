"""The ledger: what a real forward pass executed, what of it were spikes, and what it costs."""

from __future__ import annotations

from fas.accounting.ledger import Ledger, ledger

__all__ = ["Ledger", "ledger"]
