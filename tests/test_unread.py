"""What is not read: archives, and images that end early."""

from __future__ import annotations

import io
from pathlib import Path

import folders
import pytest
from PIL import Image

from fas.errors import DataError
from fas.tasks.choices import settings_of
from fas.tasks.glue import text_task
from fas.tasks.labelled import load_labelled
from fas.tasks.reading.journal import Reading
from fas.tasks.text import load_text
from fas.tasks.visual import load_visual

ARCHIVES = ("d.zip", "d.tar", "D.TAR.GZ", "d.tgz", "d.7z", "d.jsonl.zst")


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_refused_as_one_in_every_task(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    place.write_bytes(b"PK\x03\x04 and so on")
    loads = (
        lambda: load_text(str(place)),
        lambda: load_labelled(text_task("text-classification"), str(place)),
        lambda: load_visual("vqa", str(place)),
        lambda: settings_of(place),
    )
    for load in loads:
        with pytest.raises(DataError, match=r"is an archive, and FAS does not look into those; unpack it"):
            load()


def test_an_archive_beside_data_is_told(tmp_path: Path) -> None:
    folders.save_text(tmp_path / "a.txt")
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04")
    reading = Reading()
    load_text(str(tmp_path), reading=reading)
    assert "b.zip (an archive: unpack it)" in " ".join(reading.lines())


def test_a_tar_under_the_name_of_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"name".ljust(257, b"\0") + b"ustar" + bytes(250))
    with pytest.raises(DataError, match=r"a\.txt is a tar archive by its first bytes"):
        load_text(str(tmp_path / "a.txt"))


def encoded(seed: int, form: str) -> bytes:
    out = io.BytesIO()
    pixels = Image.effect_noise((40, 40), 20 + seed).convert("RGB")
    pixels.save(out, form)
    return out.getvalue()


def table_of(images: list[bytes], place: Path) -> str:
    from datasets import Dataset, Features, Value
    from datasets import Image as Column

    rows = {
        "image": [{"bytes": raw, "path": None} for raw in images],
        "label": [f"c{i % 2}" for i in range(len(images))],
    }
    Dataset.from_dict(rows, Features({"image": Column(), "label": Value("string")})).to_parquet(place)
    return str(place)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("damage", ["noise", "cut", "empty"])
def test_an_image_inside_of_a_table_that_cannot_be_read_is_refused_by_row(
    form: str, damage: str, tmp_path: Path
) -> None:
    images = [encoded(seed, form) for seed in range(24)]
    load_visual("image-classification", table_of(images, tmp_path / "good.parquet"))
    images[16] = {"noise": b"\x01" * 500, "cut": images[16][: len(images[16]) // 2], "empty": b""}[damage]
    with pytest.raises(DataError, match=r"bad\.parquet, row 17 is no image that can be read"):
        load_visual("image-classification", table_of(images, tmp_path / "bad.parquet"))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_an_image_file_that_ends_early_is_refused_before_anything(form: str, tmp_path: Path) -> None:
    for group in ("a", "b"):
        (tmp_path / group).mkdir()
        for seed in range(12):
            (tmp_path / group / f"{seed}.{form.lower()}").write_bytes(encoded(seed, form))
    load_visual("image-classification", str(tmp_path))
    place = tmp_path / "b" / f"7.{form.lower()}"
    place.write_bytes(place.read_bytes()[:-400])
    with pytest.raises(DataError, match=rf"7\.{form.lower()} is no image that can be read"):
        load_visual("image-classification", str(tmp_path))
