"""Answers and captions against what several people said."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import data, llava
from transformers import AutoProcessor, LlavaForConditionalGeneration

from fas.tasks.pictures import Pictures
from fas.tasks.vision_language import ImageTexts, asked
from fas.tasks.visual import Seen, evaluation_seen, read_part
from fas.tasks.written import bleu4, normalized, vqa_accuracy

WORDS = st.sampled_from(["yes", "no", "two", "2", "A dog", "dog.", "red"])


@given(WORDS, st.lists(WORDS, min_size=2, max_size=10))
def test_agreement_is_the_mean_over_all_but_one_of_the_people(said: str, answers: list[str]) -> None:
    """As Antol et al. define it: for each set of all but one, min(1, how many of it say the same / 3)."""
    sets = list(combinations(answers, len(answers) - 1))
    expected = [min(1, sum(normalized(a) == normalized(said) for a in some) / 3) for some in sets]
    assert vqa_accuracy(said, answers) == pytest.approx(sum(expected) / len(sets))


def test_bleu_of_several_references() -> None:
    """Clipped counts by hand: 6 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours."""
    written, references = ["the cat sat on a mat"], [["the cat sat on the mat", "a cat sat there"]]
    assert bleu4(written, references) == pytest.approx((6 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, abs=1e-6)
    assert bleu4(
        ["The Cat sat on the mat", "x y z a b"], [["the cat sat on the mat"], ["p", "x y z a b"]]
    ) == pytest.approx(1)


def test_answers_of_several_people_are_compared_with_what_is_written(tmp_path: Path) -> None:
    """VQA's layout, the answer that most gave as label; batched generation writes what one question at a time gets."""
    folder = data(tmp_path / "shapes")
    rows = evaluation_seen("vqa", str(folder))
    place = llava(folder, tmp_path / "model")
    shutil.copytree(folder / "test" / "images", tmp_path / "own" / "images")
    table = [
        {
            "image": row.image.name,
            "question": row.question,
            "answers": [{"answer": a} for a in ["no", row.answer, row.answer]],
        }
        for row in rows
    ]
    (tmp_path / "own" / "rows.json").write_text(json.dumps(table))
    seen = read_part("vqa", tmp_path / "own")
    assert [row.answer for row in seen] == [row.answer for row in rows]
    assert seen[0].references == ("no", rows[0].answer, rows[0].answer)
    processor, model = AutoProcessor.from_pretrained(place), LlavaForConditionalGeneration.from_pretrained(place).eval()
    found = ImageTexts(seen, Pictures(processor)).evaluate(model, 4)
    assert found.metric == "vqa_accuracy"
    total = 0.0
    for row in seen:
        inputs = asked(processor, row.image, row.question, model.config)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)  # type: ignore[operator]
        text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        total += vqa_accuracy(text, row.references)
    assert found.value == pytest.approx(total / len(seen))


def test_captions_of_one_image_are_references_of_each_other(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"never read")
    rows = [Seen(image, "", "a cat on a mat"), Seen(image, "", "the mat has a cat on it")]
    found = ImageTexts(rows, Pictures(None))._scored(["the mat has a cat on it", "a cat on a mat"])
    assert found == pytest.approx({"bleu4": 1.0})
