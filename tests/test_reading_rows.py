"""Rows of tables, chats, labels and questions: what is no text or no label is refused by file and row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import folders
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fas.errors import DataError
from fas.pipeline.options import ConvertOptions
from fas.pipeline.source import evaluation_of, source_of, training_of
from fas.progress import Silent
from fas.tasks.choices import settings_of
from fas.tasks.glue import text_task
from fas.tasks.labelled import class_names, read
from fas.tasks.language_modeling import stream_of
from fas.tasks.reading.journal import Reading
from fas.tasks.text import documents, load_text

OWN = text_task("text-classification")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# chats


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    folders.save_tokenizer(tmp_path / "tokenizer")
    found = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    found.chat_template = (
        "{{ bos_token or '' }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if messages[0].role != 'user' %}{{ raise_exception('the user speaks first') }}{% endif %}"
    )
    return found


def chat(number: int, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"w{number} w1"}, {"role": "assistant", "content": "w2"}], "id": 1}


def test_chats_go_through_the_template_of_the_tokenizer(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    file = write_lines(tmp_path / "chat.jsonl", [chat(number) for number in range(20)])
    found = documents(str(file), tokenizer)
    assert found[3] == "user: w3 w1\nassistant: w2"
    pq.write_table(pa.Table.from_pylist([chat(number) for number in range(20)]), tmp_path / "chat.parquet")
    assert documents(str(tmp_path / "chat.parquet"), tokenizer) == found
    assert len(load_text(str(file), None, tokenizer).training) == 17
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"holds chats .*no chat template"):
        documents(str(file), tokenizer)


def test_the_start_of_a_chat_is_not_written_twice(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import processors

    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    file = write_lines(tmp_path / "chat.jsonl", [chat(number) for number in range(3)])
    found = documents(str(file), tokenizer)
    assert [text.split(":")[0] for text in found] == ["user"] * 3  # the template writes <s> in front
    assert list(stream_of(tokenizer, found)).count(0) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat(1, "assistant"), "row 2 .*the chat template refuses its messages: the user speaks first"),
        ({"messages": []}, "row 2 .* is no list of messages"),
        ({"messages": [{"from": "human", "value": "a"}]}, "row 2 .*is no message; each has a role and a content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "row 2 .*is no message"),
        ({"id": 2}, "row 2 .* is no list of messages"),
    ],
)
def test_chats_that_are_none_are_refused_by_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], message: str
) -> None:
    file = write_lines(tmp_path / "chat.jsonl", [chat(0), row, chat(2)])
    with pytest.raises(DataError, match=message):
        documents(str(file), tokenizer)


def test_a_conversion_reads_chats_and_says_what_it_read(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = folders.save_ann(tmp_path / "ann")
    tokenizer.save_pretrained(model)
    (tmp_path / "data").mkdir()
    for part, numbers in (("train", range(80)), ("validation", range(80, 98)), ("test", range(98, 118))):
        write_lines(tmp_path / "data" / f"{part}.jsonl", [chat(number) for number in numbers])
    options = ConvertOptions(model, str(tmp_path / "data"), tmp_path / "out", length=8)
    heard = Notes()
    ann, source = source_of(options, heard)
    line = "Data: read 3 files (train.jsonl; held out: validation.jsonl; evaluated: test.jsonl): 118 documents"
    assert heard.notes[0] == line == source.reading.lines()[0]
    reading = Reading(heard)
    alone = evaluation_of(options, ann.config, source.tokenizer, reading)
    assert alone.digest() == source.evaluation.digest()
    assert reading.lines()[0] == "Data: read 1 file (evaluated: test.jsonl): 20 documents"
    assert training_of(options, ann.config, source.tokenizer).digest() == source.training.digest()


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


# rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nWell, one,1\n", r"row 1 \(line 2\) has 3 fields and its header has 2"),
        ("a.csv", 'text,label\n"a\nb",1\nc\n', r"row 2 \(line 4\) has 1 field"),
        ("a.csv", "one story\nanother\n", "begins with 'one story', and none of these names a column"),
        ("a.csv", "text,text\na,b\n", "two columns called 'text'"),
        ("a.jsonl", '{"text": "a"}\n{"text": {"body": "b"}}\n', r"row 2 \(line 2\): 'text' is an object"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": null}\n', r"row 2 \(line 3\) has nothing in column 'text'"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', r"row 2 \(line 2\) is no row with named columns, but \[1\]"),
        ("a.json", '{\n "data": [{"text": "a"}]\n}', r"holds one object \(data\) and no rows"),
        ("a.txt", '{"text": "a"}\n{"text": "b"}\n', "holds JSON lines, and its ending says text"),
        ("a.txt", "PK\x03\x04", "is a zip archive by its first bytes"),
        ("a.jsonl", '{"a": 1, "b": "x"}\n', "has the columns a, b; name the one with the text 'text'"),
    ],
)
def test_rows_that_are_no_text_are_refused_by_number(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        documents(str(tmp_path / name))
    assert str(caught.value).isprintable()


def test_texts_that_look_like_nothing_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufefftext\nNA\nnull\nNone\nnan\n0\n", encoding="utf-8")
    assert documents(str(tmp_path / "a.csv")) == ["NA", "null", "None", "nan", "0"]
    (tmp_path / "b.jsonl").write_text('\ufeff{"text": "a\u2028b\x85c"}\r\n', encoding="utf-8")
    assert documents(str(tmp_path / "b.jsonl")) == ["a\u2028b\x85c"]
    (tmp_path / "c.tsv").write_text('"id"\t"text"\n"1"\t"says ""no""\tthen"\n')  # quoted as its header says
    assert documents(str(tmp_path / "c.tsv")) == ['says "no"\tthen']


@pytest.mark.parametrize(
    "labels",
    [
        (1, "1"), ("true", True),
        (1, True), (1, "1.5x"), ("1", "good"), (0, float("nan")), (0, float("inf")), ("a", "nan"), (1, 1.5), (1, 10**30),
        (1, [2]), ("true", "1"), ("1", "1.0"), (1, None),
    ],
)  # fmt: skip
def test_labels_of_several_kinds_and_what_is_none_are_refused_by_row(tmp_path: Path, labels: tuple[Any, Any]) -> None:
    rows = [{"text": f"t{i}", "label": labels[i == 3]} for i in range(5)]
    with pytest.raises(DataError, match=r"row 4 \(line 4\)"):
        read(OWN, write_lines(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize("labels", [(-1, 0), (True, False), ("x", "y"), ("7", "a"), (1.0, 2.0), ("none", "null")])
def test_labels_of_one_kind_are_read(tmp_path: Path, labels: tuple[Any, Any]) -> None:
    rows = read(OWN, write_lines(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": labels[i % 2]} for i in range(5)]))
    assert set(class_names(OWN, rows, "a")) == {str(label) for label in labels}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf"), 1e30, True, "high", "1_000", None, ""])
def test_scores_are_finite_numbers(tmp_path: Path, score: Any) -> None:
    task = text_task("text-regression")
    rows = [{"text": f"t{i}", "score": score if i == 2 else -1.5 * i} for i in range(5)]
    with pytest.raises(DataError, match="row 3"):
        read(task, write_lines(tmp_path / "a.jsonl", rows))


def test_a_header_is_no_row_of_a_table_whose_columns_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("review,sentiment\nfine,good\npoor,bad\n")
    with pytest.raises(
        DataError, match=r"begins with 'review', 'sentiment', which looks like the names of its columns"
    ):
        read(text_task("text-classification", ("0", None, "1")), tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"begins with 'review', 'sentiment'.* looks for 'text' and 'label'"):
        read(text_task("text-classification", ("text", None, "label")), tmp_path / "a.csv")


# questions


def test_questions_are_read_by_the_same_rules(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}\u2028", "choices": ["a", "b"], "gold": 0} for i in range(4)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-8-sig")
    (tmp_path / "own.JSONL.gz").write_bytes(gzip.compress(lines))
    reading = Reading(unit="questions")
    found = settings_of(tmp_path / "own.JSONL.gz", reading)
    assert found["task"] == "own"
    assert found["custom_dataset"]()["test"].to_list() == rows
    assert reading.lines() == [f"Data: read 1 file ({tmp_path / 'own.JSONL.gz'}): 4 questions"]
