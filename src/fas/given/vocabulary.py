"""Token ids and lengths that a model has rows for."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fas.errors import DataError

_KINDS = re.compile("image|video|audio|vision|boi|eoi")


def require_tokens(model: nn.Module, ids: Tensor, where: str) -> None:
    """Raise `DataError` for token ``ids`` that the embedding of ``model`` has no row for; those that stand for images, which
    the configuration names, may lie beyond."""
    embedding = _embedding(model)
    if embedding is None or ids.is_meta or isinstance(ids, FakeTensor):
        return
    rows = embedding.num_embeddings
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high < rows:
        return
    beyond = (ids < 0) | (ids >= rows)
    for token in _images(getattr(model, "config", None)):
        beyond &= ids != token
    if bool(beyond.any()):
        first = int(ids[beyond][0])
        why = "−100 marks labels that do not count" if first == -100 else "tokenizer and model do not belong together"
        raise DataError(f"{where} holds {first}, and the model has {rows:,} tokens, 0 to {rows - 1}: {why}")


def require_width(model: nn.Module, values: Tensor, where: str) -> None:
    """Raise `DataError` for embedded tokens ``[B, S, D]`` that are not as wide as those of ``model``."""
    embedding = _embedding(model)
    if embedding is not None and (values.ndim != 3 or values.shape[-1] != embedding.embedding_dim):
        raise DataError(
            f"{where} has the shape {list(values.shape)}, and must have [sequences, tokens, {embedding.embedding_dim}]"
        )


def context_of(model: nn.Module) -> int | None:
    """The longest sequence of tokens that ``model`` has positions for; None where it has no limit."""
    config = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return None
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int) or context < 1:
        return None
    spared = [  # RoBERTa's positions start behind that of padding
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
        and isinstance(module, nn.Embedding)
        and module.padding_idx is not None
        and module.num_embeddings == context
    ]
    return context - max(spared, default=0)


def _embedding(model: nn.Module) -> nn.Embedding | None:
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return embedding if isinstance(embedding, nn.Embedding) else None


def _images(config: Any) -> set[int]:
    values = vars(config) if config is not None else {}
    named = [
        value for name, value in values.items() if name.endswith(("_token_id", "_token_index")) and _KINDS.search(name)
    ]
    return {value for value in named if isinstance(value, int)}
