"""Labelled texts: layouts, splits without leaks, labels and their numbers; and the metrics on them."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fas.errors import ConfigError, DataError
from fas.tasks.glue import CLASSIFIED, GLUE, OWN, TASKS, text_task
from fas.tasks.labelled import Labelled, class_names, evaluation_rows, label_of, load_labelled, read
from fas.tasks.metrics import scored


def table(path, rows, header=None, delimiter="\t"):
    lines = ([header] if header else []) + rows
    path.write_text("\n".join(delimiter.join(map(str, line)) for line in lines) + "\n", encoding="utf-8")
    return path


def numbered(count, start=0):
    return [(f"text number {i}", i % 2) for i in range(start, start + count)]


# layouts


@pytest.mark.parametrize(
    ("task", "header", "row", "expected"),
    [
        ("sst2", ("sentence", "label"), ("a fine film ", "1"), ("a fine film", None, "1")),
        ("sst2", None, ("a fine film", "1"), ("a fine film", None, "1")),
        ("cola", None, ("gj04", "1", "", "Our friends won't buy it."), ("Our friends won't buy it.", None, "1")),
        (
            "mrpc",
            ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
            ("1", "7", "8", 'He said "no.', "No"),
            ('He said "no.', "No", "1"),
        ),
        ("mrpc", ("sentence1", "sentence2", "label", "idx"), ("A", "B", "0", "3"), ("A", "B", "0")),
        ("stsb", ("index", "genre", "sentence1", "sentence2", "score"), ("0", "x", "A", "B", "3.8"), ("A", "B", "3.8")),
        ("stsb", None, ("captions", "MSRvid", "2012", "1", "3.800", "A", "B"), ("A", "B", "3.800")),
        ("rte", ("index", "sentence1", "sentence2", "label"), ("0", "A", "B", "entailment"), ("A", "B", "entailment")),
        ("qnli", ("index", "question", "sentence", "label"), ("0", "A?", "B", "entailment"), ("A?", "B", "entailment")),
        ("qqp", ("id", "question1", "question2", "is_duplicate"), ("0", "A", "B", "1"), ("A", "B", "1")),
        ("mnli", ("sentence1", "sentence2", "gold_label"), ("A", "B", "neutral"), ("A", "B", "neutral")),
        ("wnli", ("index", "sentence1", "sentence2", "label"), ("0", "A", "B", "1"), ("A", "B", "1")),
        ("text-classification", ("id", "text", "label"), ("9", "A", "spam"), ("A", None, "spam")),
    ],
)
def test_every_layout_in_which_the_data_is_handed_around(tmp_path, task, header, row, expected) -> None:
    (found,) = read(text_task(task), table(tmp_path / "data.tsv", [row], header))
    assert (found.text, found.pair, found.label) == expected


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "tsv"])
def test_the_same_rows_in_every_format(tmp_path, form) -> None:
    rows = [{"text": 'He said, "yes"', "label": "a"}, {"text": "no, thanks", "label": "b"}]
    path = tmp_path / f"data.{form}"
    if form == "json":
        path.write_text(json.dumps(rows))
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif form == "csv":
        path.write_text('text,label\n"He said, ""yes""",a\n"no, thanks",b\n')
    else:
        path.write_text('\ufefftext\tlabel\nHe said, "yes"\ta\nno, thanks\tb\n', encoding="utf-8")
    assert [(row.text, row.label) for row in read(OWN["text-classification"], path)] == [
        ('He said, "yes"', "a"), ("no, thanks", "b"),
    ]  # fmt: skip


def test_own_columns_by_name_and_by_number(tmp_path) -> None:
    named = table(tmp_path / "a.tsv", [("x", "one", "two", 4)], ("id", "left", "right", "how"))
    (row,) = read(text_task("text-classification", ("left", "right", "how")), named)
    assert (row.text, row.pair, row.label) == ("one", "two", "4")
    bare = table(tmp_path / "b.tsv", [(4, "one", "two")])
    (row,) = read(text_task("text-regression", ("1", "2", "0")), bare)
    assert (row.text, row.pair, row.label) == ("one", "two", "4")


@pytest.mark.parametrize("columns", [("a", None, None), (None, None, "b"), ("a", "1", "b"), ("0", None, "b")])
def test_columns_that_do_not_belong_together_are_refused(columns) -> None:
    with pytest.raises(ConfigError):
        text_task("text-classification", columns)


def test_unknown_tasks_and_layouts_name_what_there_is(tmp_path) -> None:
    with pytest.raises(ConfigError, match="sst2"):
        text_task("sst-2")
    file = table(tmp_path / "a.tsv", [("x", "y", "z")], ("q", "r", "s"))
    with pytest.raises(DataError, match="--text-column"):
        read(GLUE["mrpc"], file)
    for task, header in (
        ("sst2", ("review", "sentiment")),
        ("stsb", tuple("abcdefg")),
        ("text-classification", ("review", "kind")),
    ):
        unknown = table(tmp_path / "c.tsv", [tuple("1" for _ in header)], header)
        with pytest.raises(DataError, match="--text-column"):  # a header is no row
            read(text_task(task), unknown)
    empty_cell = table(tmp_path / "b.tsv", [("fine", 1), ("", 0)], ("sentence", "label"))
    with pytest.raises(DataError, match="row 2"):
        read(GLUE["sst2"], empty_cell)
    for name in ("no.tsv", "no.xlsx"):
        with pytest.raises(DataError, match=name):
            read(GLUE["sst2"], tmp_path / name)
    (tmp_path / "odd.xlsx").write_text("x")
    with pytest.raises(DataError, match="xlsx"):
        read(GLUE["sst2"], tmp_path / "odd.xlsx")


# splits


def test_splits_hold_each_text_once_and_are_drawn_at_random(tmp_path) -> None:
    rows = [(f"text {i}", int(i >= 100)) for i in range(200)]  # sorted by label
    data = load_labelled(GLUE["sst2"], str(table(tmp_path / "all.tsv", rows, ("sentence", "label"))))
    parts = [[row.text for row in part] for part in (data.training, data.held_out, data.evaluation)]
    assert sorted(text for part in parts for text in part) == sorted(text for text, _ in rows)
    assert [len(part) for part in parts] == [171, 9, 20]
    for part in (data.held_out, data.evaluation):
        assert {str(row.label) for row in part} == {"0", "1"}
    assert data == load_labelled(GLUE["sst2"], str(tmp_path / "all.tsv"))
    assert evaluation_rows(GLUE["sst2"], str(tmp_path / "all.tsv")) == data.evaluation


def test_texts_of_the_evaluation_are_not_trained_on(tmp_path) -> None:
    training = table(tmp_path / "train.tsv", numbered(50), ("sentence", "label"))
    first, second = table(tmp_path / "a.tsv", numbered(4)), table(tmp_path / "b.tsv", numbered(4, 48))
    data = load_labelled(GLUE["sst2"], str(training), f"{first},{second}")
    assert len(data.evaluation) == 8
    assert data.removed == 6
    assert not {row.key for row in data.evaluation} & {row.key for row in (*data.training, *data.held_out)}
    assert len(data.training) + len(data.held_out) == 44


def test_a_pair_is_another_text_than_its_first_half(tmp_path) -> None:
    rows = [("A", f"B{i}", i % 2) for i in range(30)]
    training = table(tmp_path / "train.tsv", rows, ("sentence1", "sentence2", "label"))
    other = table(tmp_path / "dev.tsv", [("A", "B3", 0), ("A", "new", 1)], ("sentence1", "sentence2", "label"))
    assert load_labelled(GLUE["rte"], str(training), str(other)).removed == 1


def test_a_folder_knows_its_parts_by_their_names(tmp_path) -> None:
    table(tmp_path / "train.tsv", numbered(40), ("sentence", "label"))
    table(tmp_path / "dev.tsv", numbered(5, 100))
    table(tmp_path / "test.tsv", numbered(7, 200))
    data = load_labelled(GLUE["sst2"], str(tmp_path))
    assert [row.text for row in data.evaluation] == [text for text, _ in numbered(5, 100)]
    assert len(data.training) + len(data.held_out) == 40
    (tmp_path / "train.tsv").unlink()
    with pytest.raises(DataError, match="train"):
        load_labelled(GLUE["sst2"], str(tmp_path))


def test_too_few_rows_and_missing_places_are_refused(tmp_path) -> None:
    few = table(tmp_path / "few.tsv", numbered(2), ("sentence", "label"))
    with pytest.raises(DataError, match="leaves"):
        load_labelled(GLUE["sst2"], str(few))
    with pytest.raises(DataError, match="does not exist"):
        load_labelled(GLUE["sst2"], str(tmp_path / "nowhere") + "/")
    with pytest.raises(DataError, match="text-classification has no data"):
        load_labelled(OWN["text-classification"], None)


# labels


def test_classes_are_numbered_as_the_task_or_the_data_has_them() -> None:
    rows = [Labelled("a", None, name) for name in ("10", "9", "-1", "9")]
    assert class_names(OWN["text-classification"], rows, "data") == ("-1", "9", "10")
    words = [Labelled("a", None, name) for name in ("subj", "obj")]
    assert class_names(OWN["text-classification"], words, "data") == ("obj", "subj")
    assert class_names(GLUE["rte"], rows, "data") == ("entailment", "not_entailment")
    with pytest.raises(DataError, match="one class"):
        class_names(OWN["text-classification"], rows[:1], "data")


def test_labels_are_names_or_numbers_of_classes_or_scores() -> None:
    rte = GLUE["rte"]
    for label, number in (("not_entailment", 1), (0, 0), ("1", 1)):
        assert label_of(rte, rte.labels, Labelled("a", "b", label)) == number
    assert label_of(GLUE["stsb"], (), Labelled("a", "b", "3.25")) == 3.25
    assert label_of(OWN["text-classification"], ("9", "10"), Labelled("a", None, 10)) == 1
    for task, names, label in (
        (rte, rte.labels, -1),
        (rte, rte.labels, "2"),
        (GLUE["stsb"], (), "good"),
        (OWN["text-classification"], ("9", "10"), "1"),
    ):
        with pytest.raises(DataError):
            label_of(task, names, Labelled("a", "b", label))


def test_all_tasks_have_a_name_and_those_of_the_hub_a_place() -> None:
    assert set(TASKS) == {
        "language-modeling",
        "text-classification",
        "text-regression",
        "vqa",
        "captioning",
        *CLASSIFIED,
        *GLUE,
    }
    assert all(task.hub == f"nyu-mll/glue:{name}" for name, task in GLUE.items())
    assert GLUE["mnli"].validation == "validation_matched"


# metrics


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_metrics_of_two_classes_are_those_of_the_four_counts(pairs) -> None:
    predicted, wanted = (np.array(side, dtype=int) for side in zip(*pairs, strict=True))
    tp, fp, fn, tn = (sum((p, w) == kind for p, w in pairs) for kind in ((1, 1), (1, 0), (0, 1), (0, 0)))
    found = scored(("accuracy", "f1", "matthews"), predicted, wanted)
    assert math.isclose(found["accuracy"], (tp + tn) / len(pairs))
    assert math.isclose(found["f1"], 2 * tp / (2 * tp + fp + fn) if tp else 0.0)
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert math.isclose(found["matthews"], (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0, abs_tol=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=40))
def test_correlations_are_cosines_of_centred_values_and_of_ranks(pairs) -> None:
    predicted, wanted = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))

    def cosine(a, b):
        a, b = a - a.mean(), b - b.mean()
        return float(a @ b / math.sqrt((a @ a) * (b @ b))) if (a @ a) * (b @ b) > 0 else 0.0

    def ranks(x):  # ties share the mean of their places
        return np.array([((x < v).sum() + 1 + (x <= v).sum()) / 2 for v in x])

    found = scored(("pearson", "spearman"), predicted, wanted)
    assert math.isclose(found["pearson"], cosine(predicted, wanted), abs_tol=1e-9)
    assert math.isclose(found["spearman"], cosine(ranks(predicted), ranks(wanted)), abs_tol=1e-9)
