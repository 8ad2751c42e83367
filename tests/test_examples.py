"""Labelled texts as examples: encoded, padded, batched for calibration, scored; and what Stage 1 makes of their logits."""

from pathlib import Path

import folders
import pytest
import tiny
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from fas.losses import logits_kl, logits_loss
from fas.tasks.glue import GLUE
from fas.tasks.labelled import Labelled
from fas.tasks.language_modeling import Blocks
from fas.tasks.masked import MaskedBlocks
from fas.tasks.text_classification import encode_labelled


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    folders.save_encoder(root / "encoder")
    return root


@pytest.fixture(scope="module")
def examples(place):
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    rows = [Labelled(" ".join(folders.WORDS[: 1 + i % 7]), None, i % 2) for i in range(40)]
    return encode_labelled(tokenizer, GLUE["sst2"], GLUE["sst2"].labels, rows, 6)


def test_texts_are_cut_where_the_model_ends_and_counted(examples) -> None:
    """One to seven words between [CLS] and [SEP]; six tokens are seen, so five, six and seven words are cut."""
    assert examples.truncated == sum(i % 7 >= 4 for i in range(40))
    assert sorted(set(examples.lengths())) == [3, 4, 5, 6]
    assert all(example["input_ids"][0] == 0 and example["input_ids"][-1] == 1 for example in examples.encoded)
    assert examples.about() == {"sequences": 40, "length": 6, "truncated": examples.truncated}


def test_a_batch_is_padded_and_says_where(examples) -> None:
    batch = examples.collate([examples[0], examples[3]])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch["input_ids"][0, 3:].tolist() == [2, 2, 2]
    assert batch["labels"].tolist() == [0, 1]


def test_batches_for_calibration_meet_no_padding_and_miss_no_text(examples) -> None:
    batches = examples.unpadded(5)
    assert all(bool(batch["attention_mask"].all()) and "labels" not in batch for batch in batches)
    assert max(len(batch["input_ids"]) for batch in batches) == 5
    seen = sorted(ids.tolist() for batch in batches for ids in batch["input_ids"])
    assert seen == sorted(example["input_ids"] for example in examples.encoded)
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert lengths != sorted(lengths), "the first few are to hold more than the shortest"
    again = examples.unpadded(5)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))


def test_calibration_takes_full_batches_of_one_length_from_all_over(place) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    rows = [Labelled(" ".join(folders.WORDS[i % 80 : i % 80 + 1 + i % 5]), None, 0) for i in range(400)]
    examples = encode_labelled(tokenizer, GLUE["sst2"], GLUE["sst2"].labels, rows, 64)
    batches = examples.for_calibration(96, 4)
    assert [len(batch["input_ids"]) for batch in batches] == [16] * 6
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1
    assert all(bool(batch["attention_mask"].all()) for batch in batches)
    assert all("labels" not in batch for batch in batches)
    known = {tuple(example["input_ids"]) for example in examples.encoded}
    assert {tuple(ids.tolist()) for batch in batches for ids in batch["input_ids"]} <= known
    few = examples.picked(range(10))  # two of each length
    assert sum(len(batch["input_ids"]) for batch in few.for_calibration(None, 4)) <= 10
    assert sum(len(batch["input_ids"]) for batch in examples.for_calibration(20, 4)) == 20
    assert [len(batch["input_ids"]) for batch in Blocks(torch.zeros(40, 3).long()).for_calibration(None, 5)] == [
        5
    ] * 6 + [2]


def test_no_text_is_calibrated_on_twice(place) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    rows = [Labelled(f"{folders.WORDS[i % 80]} {folders.WORDS[i // 80]}", None, 0) for i in range(160)]
    examples = encode_labelled(tokenizer, GLUE["sst2"], GLUE["sst2"].labels, rows, 64)
    batches = examples.for_calibration(160, 4)
    seen = [tuple(ids.tolist()) for batch in batches for ids in batch["input_ids"]]
    assert len(seen) == len(set(seen)) == 160
    few = {tuple(ids.tolist()) for batch in examples.for_calibration(48, 4) for ids in batch["input_ids"]}
    for number in (0, 79, 159):  # evenly spaced, each with the next fifteen
        assert tuple(examples[number]["input_ids"]) in few
    assert all(tuple(examples[number]["input_ids"]) in few for number in range(79, 95))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("regression", [False, True])
def test_a_model_is_scored_as_one_text_at_a_time_scores_it(place, batch_size, regression) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    task = GLUE["stsb"] if regression else GLUE["mrpc"]
    made = torch.Generator().manual_seed(0)
    rows = [
        Labelled(
            " ".join(folders.WORDS[int(w)] for w in torch.randint(80, (1 + i % 9,), generator=made)),
            " ".join(folders.WORDS[int(w)] for w in torch.randint(80, (1 + i % 4,), generator=made)),
            i / 7 if regression else i % 2,
        )
        for i in range(30)
    ]
    examples = encode_labelled(tokenizer, task, task.labels or (), rows, 64)
    model = tiny.ann("bert_sequence", num_labels=1 if regression else 2)
    found = examples.evaluate(model, batch_size)
    logits = []
    for row in rows:
        with torch.no_grad():
            logits.append(model(**tokenizer(row.text, row.pair, return_tensors="pt")).logits[0])
    logits, wanted = torch.stack(logits), torch.tensor([row.label for row in rows])
    if regression:
        assert found.loss == pytest.approx(float(F.mse_loss(logits[:, 0], wanted)), rel=1e-4)
        pearson = float(torch.corrcoef(torch.stack([logits[:, 0], wanted]))[0, 1])
        assert found.metrics["pearson"] == pytest.approx(pearson, abs=1e-4)
        assert found.metric == "spearman"
    else:
        assert found.loss == pytest.approx(float(F.cross_entropy(logits, wanted)), rel=1e-4)
        assert found.metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == wanted).float().mean()))
        assert (found.metric, found.value) == ("f1", found.metrics["f1"])
    assert found.badness == -found.value


def test_masked_blocks_hide_the_same_tokens_for_the_same_seed(place) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    blocks = torch.randint(5, 90, (6, 40), generator=torch.Generator().manual_seed(1))
    first, second, other = (MaskedBlocks(blocks, tokenizer, seed) for seed in (0, 0, 1))
    batches = [some.collate([some[i] for i in range(6)]) for some in (first, second, other)]
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert not torch.equal(batches[0]["input_ids"], batches[2]["input_ids"])
    hidden = batches[0]["labels"] != -100
    assert 0.08 < hidden.float().mean() < 0.24
    assert torch.equal(batches[0]["labels"][hidden], blocks[hidden])
    assert torch.equal(batches[0]["input_ids"][~hidden], blocks[~hidden])


def test_a_regression_is_a_squared_error_and_classes_are_a_divergence() -> None:
    student, teacher = torch.randn(7, 1), torch.randn(7, 1)
    assert float(logits_loss(student, teacher)) == pytest.approx(float((student - teacher).square().mean()))
    student, teacher = torch.randn(7, 3), torch.randn(7, 3)
    assert torch.equal(logits_loss(student, teacher, 2.0), logits_kl(student, teacher, 2.0))
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert float(logits_loss(student, teacher)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)


def test_blocks_and_texts_are_examples_alike() -> None:
    blocks = Blocks(torch.arange(40).view(10, 4))
    assert [int(example["input_ids"][0]) for example in blocks.some(3)] == [0, 16, 36]
    assert blocks.some(None) is blocks
    assert blocks.collate([blocks[0], blocks[2]])["labels"].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
