"""Text and its splits: nothing is evaluated that was trained on."""

import json

import folders
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from fas.errors import DataError
from fas.tasks import builtin, language_modeling
from fas.tasks.language_modeling import encode_blocks
from fas.tasks.text import documents, evaluation_text, load_text


def write(path, count, separator):
    path.write_text(separator.join(f"document number {i} has its own words" for i in range(count)))
    return str(path)


@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>"])
def test_last_tenth_is_evaluation(tmp_path, separator):
    file = write(tmp_path / "text.txt", 40, separator)
    text = load_text(file)
    assert len(text.evaluation) == 4
    assert text.evaluation[-1].startswith("document number 39")
    assert text.training + text.held_out + text.evaluation == documents(file)
    assert evaluation_text(file) == text.evaluation


def paragraphs(count, between="\n", words=12):
    """One document: paragraphs on lines of their own, whose words are all different."""
    return between.join(" ".join(f"w{i}.{j}" for j in range(words)) for i in range(count))


@pytest.mark.parametrize("between", ["\n\n", "\n \n", "\n\n \t\n", "\r\n\t\r\n"])
def test_documents_end_at_lines_that_look_empty(tmp_path, between):
    file = tmp_path / "a.txt"
    file.write_text(paragraphs(40, between))
    assert documents(str(file)) == paragraphs(40).split("\n")


def test_documents_of_wikitext_are_its_articles(tmp_path):
    """Titles of parts of an article have two signs and more; a line that only looks like a title has text around it."""
    first = " \n = Title {0} = \n \n First {0} . \n Second {0} , \n = no title = \n here . \n"
    article = first + " \n = = Part = = \n \n Third {0} . \n"
    file = tmp_path / "wiki.valid.tokens"
    file.write_text("".join(article.format(number) for number in range(3)))
    found = documents(str(file))
    assert [text.split(" \n")[0] for text in found] == [f"= Title {number} =" for number in range(3)]
    assert " ".join(" ".join(found).split()) == " ".join(file.read_text().split())


def test_one_document_is_cut_between_paragraphs(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text(paragraphs(200))
    text = load_text(str(file))
    assert [len(text.training), len(text.held_out), len(text.evaluation)] == [17, 1, 2]
    assert f"{file} has one document, too few to hold some out; it is cut into 20 parts" in text.note
    assert evaluation_text(str(file)) == text.evaluation
    parts = text.training + text.held_out + text.evaluation
    assert " ".join(parts).split() == file.read_text().split()  # in their order, and nothing is lost
    assert all(part.startswith("w") and part.split()[0].endswith(".0") for part in parts)
    assert max(map(len, parts)) < 2 * min(map(len, parts))


def test_what_has_no_paragraphs_is_cut_between_words_or_anywhere(tmp_path):
    words, letters = tmp_path / "words.txt", tmp_path / "letters.txt"
    words.write_text(" ".join(f"w{i}" for i in range(2000)))
    letters.write_text("".join(chr(0x4E00 + i) for i in range(3000)))
    text = load_text(str(words))
    assert " ".join(text.training + text.held_out + text.evaluation) == words.read_text()
    text = load_text(str(letters), str(words))
    assert "".join(text.training + text.held_out) == letters.read_text()
    assert text.evaluation == [words.read_text()]


def test_two_documents_are_cut_where_both_are_long(tmp_path):
    file = tmp_path / "two.txt"
    file.write_text(paragraphs(100) + "<|endoftext|>" + paragraphs(60))
    text = load_text(str(file))
    assert len(text.training + text.held_out + text.evaluation) == 40
    file.write_text(paragraphs(100) + "<|endoftext|>" + paragraphs(3))
    with pytest.raises(DataError, match="has 2 documents; at least 3"):
        load_text(str(file))


def test_no_part_of_what_is_evaluated_is_trained_on(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(paragraphs(100))
    with pytest.raises(DataError, match="all in the evaluation text"):
        load_text(str(file), str(file))


def test_given_evaluation_text_leaves_all_else_for_training(tmp_path):
    file, other = write(tmp_path / "a.txt", 40, "\n\n"), tmp_path / "b.txt"
    other.write_text("one\n\ntwo\n\nthree")
    text = load_text(file, str(other))
    assert len(text.training) + len(text.held_out) == 40
    assert len(text.evaluation) == 3


def test_a_document_in_both_texts_is_not_trained_on(tmp_path):
    file, other = write(tmp_path / "a.txt", 40, "\n\n"), write(tmp_path / "b.txt", 3, "\n\n")
    text = load_text(file, other)
    assert len(text.training) + len(text.held_out) == 37
    assert not set(text.evaluation) & {*text.training, *text.held_out}
    with pytest.raises(DataError, match="all in the evaluation text"):
        load_text(file, file)
    builtin_text = load_text("builtin", "builtin")
    assert builtin_text.evaluation == builtin.evaluation_documents()


def test_tables(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"id": i, "text": f"row {i}"}) for i in range(5)))
    (tmp_path / "rows.csv").write_text("text\n" + "\n".join(f"row {i}" for i in range(5)))
    wanted = [f"row {i}" for i in range(5)]
    assert documents(str(tmp_path / "rows.jsonl")) == wanted
    assert documents(str(tmp_path / "rows.csv")) == wanted
    assert documents(str(tmp_path)) == 2 * wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "  \n ", "holds no text"),
        ("short.txt", "one\n\ntwo", "at least 3"),
        ("bytes.txt", b"\xff\xfe\x00", "UTF-8"),
        ("table.csv", "a,b\n1,2\n3,4\n", "name the one"),
        ("picture.png", "x", "ending"),
        (None, None, "does not exist"),
    ],
)
def test_bad_text_is_one_sentence(tmp_path, name, content, message):
    path = tmp_path / (name or "missing.txt")
    if name:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load_text(str(path))
    assert "\n" not in str(caught.value)


class Letters:
    """A tokenizer of letters, which may add a start token."""

    eos_token_id, bos_token_id = 1, 2

    def __init__(self, starts):
        self.starts = starts

    def __call__(self, texts, verbose=True):
        return {"input_ids": [[2] * self.starts + [ord(c) for c in t] for t in texts]}


def test_blocks_keep_one_separator_between_documents():
    assert encode_blocks(Letters(True), ["ab", "cd"], 3).tolist() == [[2, 97, 98], [2, 99, 100]]
    assert encode_blocks(Letters(False), ["ab", "cd"], 3).tolist() == [[97, 98, 1], [99, 100, 1]]
    with pytest.raises(DataError, match="has 3 tokens"):
        encode_blocks(Letters(False), ["ab"], 4)


def test_builtin_training_text_holds_no_evaluation_text():
    evaluation = [*builtin.evaluation_documents(), *builtin.held_out_documents()]
    assert len(set(evaluation)) == len(evaluation)
    long_lines = {line for text in evaluation for line in text.splitlines() if len(line.strip()) > 40}
    assert len(evaluation) > 20
    training = builtin.training_documents()
    assert len(training) > 200
    shared = [line for text in training for line in text.splitlines() if line in long_lines]
    assert not shared


def test_builtin_split_does_not_depend_on_the_interpreter():
    held_out = {"topic:with": True, "topic:lambda": False, "module:json": False, "topic:unary": True}
    assert {name: builtin.is_evaluation(name) for name in held_out} == held_out
    assert any(text.startswith('The "with" statement') for text in builtin.evaluation_documents())


def test_many_documents_are_encoded_a_part_at_a_time(monkeypatch, tmp_path):
    folders.save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = [" ".join(folders.WORDS[i : i + 3 + i % 4]) for i in range(20)]
    whole = encode_blocks(tokenizer, texts, 7)
    monkeypatch.setattr(language_modeling, "ENCODED_AT_ONCE", 3)
    assert torch.equal(encode_blocks(tokenizer, texts, 7), whole)
    assert whole.numel() == (sum(len(text.split()) + 1 for text in texts) // 7) * 7


def test_a_hub_data_set_is_named_with_its_configuration_and_split(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda *place, split: asked.append((*place, split)) or Dataset.from_dict({"text": ["a"]}),
    )
    for source in ("owner/name:sub@test", "owner/name", "owner/name@validation"):
        assert documents(source) == ["a"]
    assert asked == [("owner/name", "sub", "test"), ("owner/name", None, "train"), ("owner/name", None, "validation")]
