"""What the ledger knows of a tensor ends with the tensor's storage, whose number PyTorch gives out again."""

from __future__ import annotations

import torch
from torch import nn

from fas.accounting.account import Account
from fas.accounting.count import Counter
from fas.accounting.provenance import NOTHING, PRUNE_EVERY, Origin, Provenance
from fas.accounting.watch import Watch


def test_copies_of_weights_that_died_make_no_weights_of_what_comes_after() -> None:
    layer = nn.Linear(4, 4, bias=False)
    counter = Counter(layer, None, Account())
    rows = torch.randn(4, 4)
    with torch.no_grad(), Watch(None, counter):
        for _ in range(64):
            rows @ layer.weight.clone()
    for _ in range(PRUNE_EVERY):
        counter.provenance.put(torch.zeros(1), Origin(timed=True))  # until those that died are forgotten
    with torch.no_grad(), Watch(None, counter):
        living = [torch.tanh(rows + i) for i in range(64)]
        for other in living:
            rows @ other
    assert [product.kind for product in counter.account.products] == ["linear"] * 64 + ["attention"] * 64


def test_origins_are_of_storages_and_end_with_them() -> None:
    provenance = Provenance()
    rows = torch.randn(4, 4)
    provenance.put(rows, Origin(timed=True, constant=True))
    assert provenance.of(rows.t()[1:]) == Origin(timed=True, constant=True)
    assert provenance.of(rows.clone()) is NOTHING
    provenance.put(rows, Origin())
    assert provenance.of(rows) is NOTHING
    kept = torch.zeros(1)
    provenance.put(kept, Origin(constant=True))
    for _ in range(2 * PRUNE_EVERY):
        provenance.put(torch.zeros(1), Origin(timed=True))
    assert len(provenance.known) <= PRUNE_EVERY + 1
    assert provenance.of(kept).constant
