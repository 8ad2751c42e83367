"""One reader for all tasks: which files are read for what, what is refused by row, and that all of it is said."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from fas.errors import DataError
from fas.progress import Silent
from fas.tasks.choices import settings_of
from fas.tasks.glue import GLUE, text_task
from fas.tasks.labelled import evaluation_rows, load_labelled
from fas.tasks.pictures import opened
from fas.tasks.reading import contents, places
from fas.tasks.reading.journal import Reading
from fas.tasks.text import documents, evaluation_text, load_text
from fas.tasks.visual import evaluation_seen, load_visual

SHARED = Path(__file__).parents[1] / ".." / "shared/data"
OWN = text_task("text-classification")


def told(name: str, count: int = 20) -> list[str]:
    return [f"{name} {i} has words" for i in range(count)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled(name: str, count: int = 20) -> list[dict[str, Any]]:
    return [{"text": text, "label": ("a", "b")[i % 2]} for i, text in enumerate(told(name, count))]


# which files


def test_a_snapshot_of_the_hub_is_read_by_its_splits_without_its_card(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for part in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
        pq.write_table(pa.table({"text": told(part)}), tmp_path / "data" / f"{part}.parquet")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Card\n\nOne.\n\nTwo.\n")
    (tmp_path / ".gitattributes").write_text("*.parquet filter=lfs")
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "train.txt").write_text("a\n\nb")
    reading = Reading()
    text = load_text(str(tmp_path), reading=reading)
    assert text.training == told("train-00000-of-00002") + told("train-00001-of-00002")
    assert text.held_out == told("validation-00000-of-00001")
    assert text.evaluation == evaluation_text(str(tmp_path)) == told("test-00000-of-00001")
    assert documents(str(tmp_path)) == text.training
    assert reading.lines() == [
        "Data: read 4 files (data/train-00000-of-00002.parquet, data/train-00001-of-00002.parquet; held out: "
        "data/validation-00000-of-00001.parquet; evaluated: data/test-00000-of-00001.parquet): 80 documents",
        "skipped: .cache (hidden), .gitattributes (hidden), README.md (card)",
    ]
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(told("other")))
    given = load_text(str(tmp_path), str(other), reading=(again := Reading()))
    assert given.evaluation == told("other")
    assert "data/test-00000-of-00001.parquet" in again.skipped


@pytest.mark.parametrize("names", [("test.txt",), ("valid.txt", "test.txt"), ("x/dev.txt", "notes.txt")])
def test_without_a_train_split_nothing_is_trained_on_but_tests_are_evaluated(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n\n".join(told(name)))
    for load in (load_text, documents):
        with pytest.raises(DataError, match=r"has no split called train, but .*; give the file to train on itself"):
            load(str(tmp_path))
    used = next(name for name in ("test.txt", "x/dev.txt") if name in names)
    assert evaluation_text(str(tmp_path)) == told(used)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_the_folder_of_wikitext_is_not_mixed_up() -> None:
    folder = SHARED / "lm/wikitext-2"
    with pytest.raises(DataError, match=r"test \(test.txt\) and validation \(valid.txt\)"):
        load_text(str(folder))
    text = load_text(str(folder / "valid.txt"), str(folder))
    assert len(text.training + text.held_out) == 60
    assert len(text.evaluation) == len(documents(str(folder / "test.txt"))) > 59


def test_ordinary_files_without_splits_are_all_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "A.TXT").write_text("\n\n".join(told("A")))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": "c 1"}).encode()))
    (tmp_path / "d.md.bz2").write_bytes(bz2.compress("d 1\n\nd 2".encode("utf-8-sig")))
    (tmp_path / "devotion.raw").write_text("e 1")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "README.md")
    reading = Reading()
    assert sorted(documents(str(tmp_path), reading=reading)) == sorted([*told("A"), "c 1", "d 1", "d 2", "e 1"])
    assert reading.skipped == {
        "README.md": "card", "loop": "a link back to a folder that is read", "pipe.txt": "no regular file",
        "link": "a link back to a folder that is read",
    }  # fmt: skip


def test_what_datasets_saved_is_read_by_its_splits(tmp_path: Path) -> None:
    names = ("train", "validation", "test")
    DatasetDict({name: Dataset.from_dict({"text": told(name)}) for name in names}).save_to_disk(tmp_path / "saved")
    reading = Reading()
    text = load_text(str(tmp_path / "saved"), reading=reading)
    assert (text.training, text.held_out, text.evaluation) == (told("train"), told("validation"), told("test"))
    assert set(reading.skipped.values()) == {"metadata"}


def test_several_configurations_are_not_mixed(tmp_path: Path) -> None:
    both = "- config_name: en\n  data_files: en/*\n- config_name: de\n  data_files:\n  - split: train\n    path: de/*\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{both}---\n")
    write_lines(tmp_path / "en/train.jsonl", [{"text": text} for text in told("en")])
    assert len(documents(str(tmp_path))) == 20
    write_lines(tmp_path / "de/train.jsonl", [{"text": text} for text in told("de")])
    with pytest.raises(DataError, match=r"holds 2 configurations \(en, de\)"):
        documents(str(tmp_path))


def test_splits_of_the_hub_are_as_those_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("train", "validation", "test", "unsupervised")
    tables = DatasetDict({name: Dataset.from_dict({"text": told(name)}) for name in names})
    monkeypatch.setattr("datasets.load_dataset", lambda *place, split=None: tables if split is None else tables[split])
    reading = Reading()
    text = load_text("owner/name", reading=reading)
    assert (text.training, text.held_out, text.evaluation) == (told("train"), told("validation"), told("test"))
    assert list(reading.skipped) == ["unsupervised"]
    assert reading.lines()[0] == (
        "Data: read 3 splits (owner/name, split train; held out: owner/name, split validation; evaluated: owner/name, split "
        "test): 60 documents"
    )
    assert evaluation_text("owner/name", "owner/name@validation") == told("validation")
    rows = {name: Dataset.from_list(labelled(name)) for name in names[:3]}
    monkeypatch.setattr("datasets.load_dataset", lambda *place: rows)
    data = load_labelled(OWN, "owner/name")
    assert [row.text for row in data.evaluation] == told("test")
    assert [row.text for row in data.held_out] == told("validation")
    tables.pop("train")
    monkeypatch.setattr("datasets.load_dataset", lambda *place: {"default": tables["test"]})
    with pytest.raises(DataError, match="no split called train, but default; name one, as owner/name@NAME"):
        load_text("owner/name")


@pytest.mark.parametrize("source", ["https://x.org/a", "file:///etc/passwd", "", "{}@test", "{}:en"])
def test_what_is_no_data_set_of_the_hub_is_not_asked_of_it(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.txt").write_text("a\n\nb")
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    for load in (documents, lambda s: load_labelled(OWN, s), lambda s: load_visual("vqa", s)):
        if source or load is documents:
            with pytest.raises(DataError, match=r"is no .* and no data set of the hub|lies here"):
                load(source.format(tmp_path.name))


def test_labelled_tables_are_held_out_and_evaluated_as_their_names_say(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        write_lines(tmp_path / f"{name}.jsonl", labelled(name))
    reading = Reading()
    data = load_labelled(OWN, str(tmp_path), reading=reading)
    used = [[row.text for row in part] for part in (data.training, data.held_out, data.evaluation)]
    assert used == [told("train"), told("dev"), told("test")]
    assert reading.lines()[0].endswith("(train.jsonl; held out: dev.jsonl; evaluated: test.jsonl): 60 rows")
    write_lines(tmp_path / "test.jsonl", [row | {"label": -1} for row in labelled("test")])
    data = load_labelled(OWN, str(tmp_path), reading=(again := Reading()))
    assert (
        [row.text for row in data.evaluation]
        == [row.text for row in evaluation_rows(OWN, str(tmp_path))]
        == told("dev")
    )
    assert again.skipped == {"test.jsonl": "has no labels"}
    (tmp_path / "dev.jsonl").unlink()
    (tmp_path / "test.jsonl").write_text('{"id": 1, "text": "a"}\n')
    data = load_labelled(OWN, str(tmp_path), reading=(again := Reading()))
    assert [len(rows) for rows in (data.training, data.held_out, data.evaluation)] == [17, 1, 2]
    assert again.skipped == {"test.jsonl": "has no labels"}


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_folders_of_glue_are_read_without_their_notes() -> None:
    data = load_labelled(GLUE["sst2"], str(SHARED / "glue/sst2"), reading=(reading := Reading()))
    assert len(data.evaluation) == 872
    assert reading.skipped == {"SOURCE.txt": "note", "test.tsv": "validation is evaluated on"}
    assert len(load_labelled(GLUE["stsb"], str(SHARED / "glue/stsb")).evaluation) == 1500
    assert len(load_labelled(GLUE["mrpc"], str(SHARED / "glue/mrpc")).evaluation) == 1725


# what is no file, or no text


@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl", "pipe.parquet", "zero"])
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path, name: str) -> None:
    place = tmp_path / f"{name}{'.jsonl' if name == 'zero' else ''}"
    place.symlink_to("/dev/zero") if name == "zero" else os.mkfifo(place)
    with pytest.raises(DataError, match="is no regular file but a pipe, a device or the like"):
        load_text(str(place))
    if place.suffix:
        for load in (
            lambda: load_labelled(OWN, str(place)), lambda: load_visual("vqa", str(place)), lambda: settings_of(place),
        ):  # fmt: skip
            with pytest.raises(DataError, match="is no regular file"):
                load()


def test_large_files_are_told_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "LARGE", 100)
    (tmp_path / "a.txt").write_text("\n\n".join(told("a")))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"b"))
    pq.write_table(pa.table({"text": told("c")}), tmp_path / "c.parquet")
    progress = Notes()
    documents(str(tmp_path), reading=Reading(progress))
    assert [note.split(",")[0].removeprefix(f"reading {tmp_path}/") for note in progress.notes] == [
        "a.txt", "b.txt.gz", "c.parquet",
    ]  # fmt: skip
    monkeypatch.setattr(places, "SILENT_SECONDS", -1.0)
    documents(str(tmp_path), reading=Reading(progress))
    assert f"still looking through {tmp_path}: 3 files so far" in progress.notes


def test_what_becomes_much_larger_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "BOMB", 1000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a " * 1_000_000))
    with pytest.raises(DataError, match="more than 200 times as large"):
        documents(str(tmp_path))


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_what_cannot_be_opened_or_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\n\ntwo")
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    with pytest.raises(DataError, match="more than this machine's memory"):
        documents(str(file))
    monkeypatch.undo()

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"a.txt cannot be read: Permission denied"):
        documents(str(file))
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(DataError, match="does not exist"):
            documents(f"./{name}.txt")


# images


def pictures(place: Path, name: str, count: int = 12, side: int = 4) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (side, side), (number, 0, 0)).save(place / f"{name}{number}.png")


def test_hidden_folders_are_no_classes_and_what_is_left_is_told(tmp_path: Path) -> None:
    for name in ("cat", "dog", ".ipynb_checkpoints", "cat/inside"):
        pictures(tmp_path / name, name.replace("/", "-").strip("."))
    (tmp_path / "cat" / "notes.pdf").write_text("x")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "fox").mkdir()
    reading = Reading()
    found = load_visual("image-classification", str(tmp_path), reading=reading)
    seen = [*found.training, *found.held_out, *found.evaluation]
    assert sorted({row.image.parent.name for row in seen}) == sorted({row.answer for row in seen}) == ["cat", "dog"]
    assert [Path(name).name for name in reading.skipped] == [
        ".ipynb_checkpoints", "README.md", "inside", "notes.pdf", "fox",
    ]  # fmt: skip
    assert reading.about()["rows"] == 24
    assert reading.lines()[0] == f"Data: read 2 folders ({tmp_path / 'cat'}, {tmp_path / 'dog'}): 24 rows"


def test_parts_of_images_are_used_as_their_names_say(tmp_path: Path) -> None:
    for part in ("train_a", "train_b", "val2017", "test"):
        for name in ("cat", "dog"):
            pictures(tmp_path / part / name, f"{part}-{name}")
    found = load_visual("image-classification", str(tmp_path))
    parts = [
        {row.image.name.split("-")[0] for row in rows} for rows in (found.training, found.held_out, found.evaluation)
    ]
    assert parts == [{"train_a", "train_b"}, {"val2017"}, {"test"}]
    (tmp_path / "train.csv").write_text("image,label\n")
    with pytest.raises(DataError, match=r"has train.csv and train_a and train_b for train"):
        load_visual("image-classification", str(tmp_path))


def test_a_snapshot_with_images_in_its_tables(tmp_path: Path) -> None:
    kinds = Features({"image": ImageFeature(), "label": Value("string")})
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        pictures(tmp_path / part, part)
        stored = [{"bytes": file.read_bytes(), "path": None} for file in sorted((tmp_path / part).iterdir())]
        shutil.rmtree(tmp_path / part)
        table = Dataset.from_dict({"image": stored, "label": ["a", "b"] * 6}, features=kinds)
        table.to_parquet(str(tmp_path / "data" / f"{part}-00000-of-00001.parquet"))
    (tmp_path / "README.md").write_text("card")
    found = load_visual("image-classification", str(tmp_path))
    assert [len(rows) for rows in (found.training, found.held_out, found.evaluation)] == [11, 1, 12]
    assert {opened(row.image).getpixel((0, 0))[0] for row in found.evaluation} == set(range(12))
    assert len(evaluation_seen("image-classification", str(tmp_path))) == 12


def test_an_unlabelled_test_split_of_images_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path, "a", 40)
    kinds = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})

    def table(start: int, labels: list[int]) -> Dataset:
        images = [str(tmp_path / f"a{start + number}.png") for number in range(len(labels))]
        return Dataset.from_dict({"image": images, "label": labels}, features=kinds)

    tables = {"train": table(0, [0, 1] * 10), "validation": table(20, [0, 1] * 5), "test": table(30, [-1] * 10)}
    monkeypatch.setattr("datasets.load_dataset", lambda *_: tables)
    found = load_visual("image-classification", "owner/name", reading=(reading := Reading()))
    assert [len(rows) for rows in (found.training, found.held_out, found.evaluation)] == [19, 1, 10]
    assert reading.skipped == {"test": "has no labels"}


def test_a_photograph_stands_upright_and_has_eight_bits(tmp_path: Path) -> None:
    """As `datasets` decodes those of the hub."""
    picture, exif = Image.new("RGB", (6, 4)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert opened(tmp_path / "a.jpg").size == (4, 6)
    (tmp_path / "cat").mkdir()
    Image.new("I;16", (6, 4)).save(tmp_path / "cat" / "deep.png")
    pictures(tmp_path / "dog", "dog")
    with pytest.raises(DataError, match=r"deep.png has more than 8 bits a channel"):
        load_visual("image-classification", str(tmp_path))
