"""Sliding-window perplexity against a loop by its definition, and its units against closed forms."""

from __future__ import annotations

import json
import math

import folders
import pytest
import tiny
import torch
from torch import nn
from transformers import AutoTokenizer

from fas.cli import main
from fas.errors import ConfigError, DataError
from fas.pipeline.convert import run_conversion
from fas.pipeline.evaluate import evaluate_folder
from fas.pipeline.options import ConvertOptions
from fas.tasks.sliding import SlidingText, sliding_text


def by_definition(model: nn.Module, tokens: torch.Tensor, length: int, stride: int) -> tuple[float, int]:
    """Each token alone: its likelihood in the first window that holds it together with something in front of it."""
    nats, count = 0.0, 0
    for position in range(1, len(tokens)):
        begin = next(b for b in range(0, len(tokens), stride) if b + length > position)
        with torch.no_grad():
            said = model(input_ids=tokens[begin:position][None], use_cache=False).logits[0, -1].double().log_softmax(-1)
        nats -= float(said[tokens[position]])
        count += 1
    return nats, count


@pytest.mark.parametrize(("length", "stride"), [(8, 3), (8, 7), (8, 1), (64, 10), (50, 20)])
@pytest.mark.parametrize("size", [1, 4])
def test_every_token_is_predicted_once_as_in_a_loop_by_definition(length, stride, size) -> None:
    model = tiny.exact(tiny.snn("llama", levels=4, timesteps=3))
    tokens = tiny.tokens(1, 45)[0]
    text = SlidingText(tokens, length, stride, words=11, bytes=120, documents=2)
    found = text.evaluate(model, size)
    nats, count = by_definition(model, tokens, length, stride)
    assert (found.tokens, found.items) == (count, 2)
    assert found.loss == pytest.approx(nats / count, rel=1e-9)
    assert found.metric == "perplexity"
    assert found.metrics["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-9)
    assert found.metrics["word_perplexity"] == pytest.approx(math.exp(nats / 11), rel=1e-9)
    assert found.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / 120, rel=1e-9)


@pytest.mark.parametrize(("count", "length", "stride"), [(2, 8, 3), (8, 8, 7), (9, 8, 7), (100, 16, 5), (17, 16, 1)])
def test_windows_predict_each_token_but_the_first_with_enough_in_front(count, length, stride) -> None:
    text = SlidingText(torch.arange(count), length, stride, 1, 1, 1)
    predicted = [i for begin, end, first in text.windows() for i in range(first, end)]
    assert predicted == list(range(1, count))
    for begin, end, first in text.windows():
        assert end - begin <= length
        assert begin == 0 or first - begin == length - stride


def test_words_and_bytes_of_a_uniform_model(tmp_path) -> None:
    """Where all tokens are equally likely, everything is known in advance."""
    folders.save_ann(tmp_path / "ann")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ann")
    model = tiny.ann("gpt2")
    nn.init.zeros_(model.lm_head.weight)  # tied to the embedding: all logits are 0
    documents = ["w1 w2  w3\nw4", "w5 ü w6"]  # ü is two bytes
    text = sliding_text(tokenizer, documents, 5, 2)
    assert text.tokens.tolist()[0] == tokenizer.eos_token_id  # so that w1 is predicted, too
    assert (text.words, text.bytes, text.documents) == (7, 12 + 8, 2)
    found = text.evaluate(model, 3)
    assert found.tokens == 7 + 2  # each document ends with a separator
    assert found.metrics["perplexity"] == pytest.approx(tiny.VOCAB)
    assert found.metrics["word_perplexity"] == pytest.approx(tiny.VOCAB ** (9 / 7))
    assert found.metrics["bits_per_byte"] == pytest.approx(9 * math.log2(tiny.VOCAB) / 20)


def test_documents_are_evenly_spaced_and_strides_checked(tmp_path) -> None:
    folders.save_ann(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = sliding_text(tokenizer, [f"w{i}" for i in range(9)], 8, 4, count=3)
    words = [w for w in tokenizer.convert_ids_to_tokens(text.tokens) if w.startswith("w")]
    assert (words, text.documents, text.words) == (["w0", "w4", "w8"], 3, 3)
    for stride in (0, 8, 9):
        with pytest.raises(ConfigError, match=f"stride={stride} is not from 1 to 7"):
            sliding_text(tokenizer, ["w1 w2"], 8, stride)
    with pytest.raises(DataError, match="give more text"):
        sliding_text(tokenizer, [" "], 8, 4)


def test_the_command_shows_all_three_units(tmp_path, capsys) -> None:
    options = ConvertOptions(
        model=folders.save_ann(tmp_path / "ann"), data=folders.save_text(tmp_path / "text.txt"), out=tmp_path / "snn",
        levels=4, timesteps=(4,), stage1="none", length=16, calibration_sequences=4, eval_sequences=4,
    )  # fmt: skip
    run_conversion(options)
    found = evaluate_folder(options.out, stride=5, eval_sequences=4)
    assert [row.name for row in found.rows] == ["ann", "control", "qcfs", "snn"]
    assert {row.tokens for row in found.rows} == {4 * 26}  # 25 words and a separator each
    assert found.extra["evaluation"]["stride"] == 5
    for row in found.rows:
        assert row.perplexity == row.value == pytest.approx(math.exp(row.loss))
        assert row.metrics["word_perplexity"] == pytest.approx(math.exp(row.loss * 26 / 25))
    ratio = found.rows[-1].value / found.rows[1].value
    command = ["eval", str(options.out), "--stride", "5", "--eval-sequences", "4", "--quiet"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert all(title in out for title in ("perplexity", "word perplexity", "bits/byte"))
    assert f"×{ratio:.3f}" in out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][-1]["metrics"] == found.rows[-1].metrics
    assert main([*command[:-1], "--length", "5", "--quiet"]) == 2
    assert "stride=5 is not from 1 to 4" in capsys.readouterr().err
