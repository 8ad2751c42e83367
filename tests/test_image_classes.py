"""Images of classes: from folders, tables and hub data sets; classifiers with new heads, and classes by their texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shapes import COLOURS
from transformers import (
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from typer.testing import CliRunner

from fas.cli import app
from fas.errors import ConfigError, DataError, FasError
from fas.pipeline.convert import run_conversion
from fas.pipeline.load import load_spiking
from fas.pipeline.options import ConvertOptions
from fas.tasks.image_classification import ImageLabels, prompted
from fas.tasks.pictures import Pictures
from fas.tasks.visual import Seen, load_visual, read_part

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
SEEN = SHAPE | {"image_size": 16, "patch_size": 8}
SHORT = {
    "timesteps": (8,),
    "stage1_steps": 60,
    "batch_size": 16,
    "lr": 3e-3,
    "calibration_sequences": 8,
    "fit_steps": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``test``, each with a folder a class."""
    place = tmp_path_factory.mktemp("classes")
    for part, count in (("train", 24), ("test", 4)):
        for name, colour in COLOURS.items():
            (place / part / name).mkdir(parents=True)
            for number in range(count):
                tint = tuple(min(255, value + 3 * number) for value in colour)
                Image.new("RGB", (16, 16), tint).save(place / part / name / f"{part}{number}.png")
    return place


def vit(place: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SEEN, **settings)).save_pretrained(place)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(place)
    return place


def _tokenizer(place: Path) -> CLIPTokenizer:
    letters = [*map(chr, range(97, 123)), "."]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    place.mkdir(exist_ok=True)
    (place / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"), model_max_length=32)


def comparing(kind: str, place: Path) -> Path:
    """A tiny random CLIP or SigLIP with real processor classes."""
    tokenizer, size = _tokenizer(place), {"height": 16, "width": 16}
    text = SHAPE | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "bos_token_id": 54, "eos_token_id": 55}
    torch.manual_seed(0)
    model: Any
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=SEEN, projection_dim=16))
        processor: Any = CLIPProcessor(CLIPImageProcessor(size=size, do_center_crop=False), tokenizer)
    else:
        text |= {"pad_token_id": 55, "projection_size": 32}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=SEEN))
        processor = SiglipProcessor(SiglipImageProcessor(size=size), tokenizer)
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


def test_folders_and_tables_of_classes(folder: Path, tmp_path: Path) -> None:
    found = load_visual("image-classification", str(folder))
    assert len(found.evaluation) == 12
    assert len(found.training) + len(found.held_out) == 72
    assert {row.image.parent.name == row.answer for row in found.evaluation} == {True}
    one = load_visual("image-classification", str(folder / "train"))  # no part but classes: a tenth is drawn
    assert len(one.evaluation) == 7
    image = folder / "test" / "red" / "test0.png"
    (tmp_path / "own.csv").write_text(f"path,class\n{image},red\n{image},1\n")
    assert read_part("image-classification", tmp_path / "own.csv") == [Seen(image, "", "red"), Seen(image, "", "1")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has neither a table .* nor folders with images, one a class"):
        read_part("image-classification", tmp_path / "empty")
    (tmp_path / "own.csv").write_text(f"path,name\n{image},red\n")
    with pytest.raises(DataError, match="has path, name; image-classification looks for label"):
        read_part("image-classification", tmp_path / "own.csv")


def test_a_class_called_train_is_a_class(folder: Path, tmp_path: Path) -> None:
    for name in ("train", "car"):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{number}.png")
    assert {row.answer for row in load_visual("image-classification", str(tmp_path)).training} == {"train", "car"}


def test_a_classifier_gets_a_head_of_the_data_learns_and_spikes(folder: Path, tmp_path: Path) -> None:
    """As one trained on other classes: its ANN has no row, the control learns, and the SNN is as good after reloading."""
    place = vit(tmp_path / "vit", num_labels=7)
    options = ConvertOptions(str(place), str(folder), tmp_path / "out", task="image-classification", **SHORT)
    rows = {row.name: row for row in run_conversion(options).rows}
    assert "ann" not in rows
    assert rows["control"].value > 0.9
    assert rows["snn"].value > 0.9
    model, processor = load_spiking(str(tmp_path / "out"), any_task=True)
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    right = 0
    seen = load_visual("image-classification", str(folder)).evaluation
    for row in seen:
        with torch.no_grad():
            logits = model(**processor(images=Image.open(row.image), return_tensors="pt")).logits  # type: ignore[operator]
        right += model.config.id2label[int(logits.argmax())] == row.answer
    assert right / len(seen) == pytest.approx(rows["snn"].value)
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "out"), "--quiet", "--json"], catch_exceptions=False)
    assert {row["metric"] for row in json.loads(done.stdout)["rows"]} == {"accuracy"}


def test_a_trained_classifier_keeps_its_head_and_order(folder: Path, tmp_path: Path) -> None:
    names = dict(enumerate(("Red", "Blue", "Green")))
    place = vit(tmp_path / "vit", id2label=names, label2id={name: number for number, name in names.items()})
    options = ConvertOptions(
        str(place), str(folder), tmp_path / "out", task="image-classification", stage1="none", stage2=False
    )
    rows = {row.name: row for row in run_conversion(options).rows}
    ann = AutoModelForImageClassification.from_pretrained(place).eval()
    examples = ImageLabels(
        load_visual("image-classification", str(folder)).evaluation,
        Pictures(ViTImageProcessor.from_pretrained(place)), ("red", "blue", "green"),
    )  # fmt: skip
    assert rows["ann"].loss == pytest.approx(examples.evaluate(ann, 5).loss)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_classes_by_their_texts(kind: str, folder: Path, tmp_path: Path) -> None:
    """Both towers spike; Stage 1 learns to tell the texts apart; scored as transformers' own classes would."""
    place = comparing(kind, tmp_path / kind)
    options = ConvertOptions(
        str(place), str(folder), tmp_path / "out", task="zero-shot-image-classification", template="a {} thing", **SHORT
    )
    rows = {row.name: row for row in run_conversion(options).rows}
    assert rows["control"].value > 0.9
    assert rows["snn"].value > 0.8
    model, processor = load_spiking(str(tmp_path / "out"), any_task=True)
    names = sorted(COLOURS)
    texts = prompted(processor, names, "a {} thing")
    assert texts["input_ids"].shape == (3, 64 if kind == "siglip" else texts["input_ids"].shape[1])
    right = 0
    seen = load_visual("image-classification", str(folder)).evaluation
    for row in seen:
        pixels = processor.image_processor(images=Image.open(row.image), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            best = model(pixel_values=pixels, **texts).logits_per_image.argmax()  # type: ignore[operator]
        right += names[int(best)] == row.answer
    assert right / len(seen) == pytest.approx(rows["snn"].value)
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "out"), "--quiet", "--json"], catch_exceptions=False)
    again = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    out = str(tmp_path / "out")
    told = CliRunner().invoke(app, ["energy", out, "--sequences", "2", "--quiet", "--json"], catch_exceptions=False)
    assert {"vision", "text"} <= {part["part"] for part in json.loads(told.stdout)["ledgers"][0]["parts"]}
    assert again["snn"]["value"] == pytest.approx(rows["snn"].value)


def test_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    place = vit(tmp_path / "vit")
    with pytest.raises(FasError, match="is no model that compares images with texts that FAS knows"):
        run_conversion(ConvertOptions(str(place), str(folder), tmp_path / "a", task="zero-shot-image-classification"))
    with pytest.raises(FasError, match="builtin cannot classify images"):
        run_conversion(ConvertOptions("builtin", str(folder), tmp_path / "b", task="image-classification"))
    with pytest.raises(ConfigError, match="template='x' is for zero-shot-image-classification"):
        ConvertOptions(str(place), str(folder), tmp_path / "c", task="image-classification", template="x")
    with pytest.raises(ConfigError, match=r"prompt template 'x' has no \{\}"):
        prompted(None, ["a"], "x")
    other = ImageLabels(
        [Seen(folder / "test" / "red" / "test0.png", "", "cat")], Pictures(ViTImageProcessor()), ("dog", "fox")
    )
    with pytest.raises(DataError, match=r"'cat' \(test0.png\) is none of the classes dog, fox"):
        other[0]


def _hub(folder: Path) -> Any:
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    names = sorted(COLOURS)
    parts = {}
    for part in ("train", "test"):
        images = sorted((folder / part).glob("*/*.png"))
        table = {
            "image": [str(image) for image in images],
            "label": [names.index(image.parent.name) for image in images],
            "image_id": [1000 * (part == "test") + number for number in range(len(images))],
        }
        kinds = Features({"image": ImageFeature(), "label": ClassLabel(names=names), "image_id": _int()})
        parts[part] = Dataset.from_dict(table, features=kinds)
    return DatasetDict(parts)


def _int() -> Any:
    from datasets import Value

    return Value("int64")


def test_images_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real tables of `datasets`: classes by name, images decoded when they are seen, the same pixels as from files."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("datasets.load_dataset", lambda *names: asked.append(names) or _hub(folder))
    found = load_visual("image-classification", "owner/colours:plain")
    assert asked == [("owner/colours", "plain")]
    local = load_visual("image-classification", str(folder))
    assert sorted(row.answer for row in found.evaluation) == sorted(row.answer for row in local.evaluation)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    names = tuple(sorted(COLOURS))
    mine, theirs = (ImageLabels(rows.evaluation, Pictures(processor), names) for rows in (found, local))
    pixels = [sorted(float(e[i]["pixel_values"].sum()) for i in range(len(e))) for e in (mine, theirs)]
    assert pixels[0] == pytest.approx(pixels[1])
    assert mine.digest() != theirs.digest()
    assert len({row.image for row in (*found.training, *found.held_out, *found.evaluation)}) == 84
    with pytest.raises(DataError, match="looks for question and answer"):
        load_visual("vqa", "owner/colours")
    monkeypatch.setattr("datasets.load_dataset", lambda *names: {"test": _hub(folder)["test"]})
    with pytest.raises(DataError, match="has no split called train, but test"):
        load_visual("image-classification", "owner/colours")
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *names: {"train": _hub(folder)["train"].remove_columns("image")}
    )
    with pytest.raises(DataError, match="none of which holds images"):
        load_visual("image-classification", "owner/colours")
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        load_visual("image-classification", "./nowhere")
