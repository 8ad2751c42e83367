"""Chat messages as the text that a model reads: through the chat template of its tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from fas.errors import DataError
from fas.tasks.reading.tables import Table, short, whole

CHATS = ("messages", "conversation", "conversations", "chat")
"""Columns of lists of messages, each with ``role`` and ``content``."""


def chat_text(table: Table, number: int, column: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The messages of a row as the chat template of ``tokenizer`` writes them, without the start token that it adds itself.

    Raises `DataError` without a template, for what are no messages, and for messages that the template refuses.
    """
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError(
            f"{table.source} holds chats ({column}), and the tokenizer has no chat template to write them with; give a model "
            "with one, or a column text"
        )
    messages = _messages(table, number, column)
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template raises what it likes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{table.at(number)}: the chat template refuses its {column}: {reason}") from None
    if tokenizer.bos_token and tokenizer("a", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(tokenizer.bos_token)
    return text


def _messages(table: Table, number: int, column: str) -> list[dict[str, Any]]:
    found = table.rows[number].get(column)
    if not isinstance(found, list) or not found:
        raise DataError(f"{table.at(number)}: {column}={short(found)} is no list of messages with role and content")
    for message in found:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(
                f"{table.at(number)}: {short(message)} in {column} is no message; each has a role and a content, both texts"
            )
        whole(message["content"], lambda: f"{table.at(number)}: a message")
    return found
