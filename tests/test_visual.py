"""Questions about images: data in every layout, encoded as the processor does, scored as generation would, converted."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from shapes import data, llava, part
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration
from typer.testing import CliRunner

import fas
from fas.cli import app
from fas.errors import ConfigError, DataError, FasError
from fas.models.find import find_segments
from fas.pipeline.convert import run_conversion
from fas.pipeline.generate import Decoding, continue_text
from fas.pipeline.load import load_ann, load_spiking
from fas.pipeline.options import ConvertOptions
from fas.runtime.control import sites_of
from fas.tasks import pictures
from fas.tasks.pictures import Pictures
from fas.tasks.vision_language import IGNORED, ImageTexts, asked, first_token, prompt_of
from fas.tasks.visual import Seen, evaluation_seen, load_visual, read_part


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava(folder, tmp_path_factory.mktemp("llava") / "model")


def test_parts_of_a_folder_share_no_image(folder: Path, tmp_path: Path) -> None:
    found = load_visual("vqa", str(folder))
    assert len(found.evaluation) == 18
    assert {row.image.parent.parent.name for row in found.evaluation} == {"test"}
    assert len(found.training) + len(found.held_out) == 120
    assert not {row.image for row in found.training} & {row.image for row in found.held_out}
    assert found.training[0].question == "what color is it?"
    alone = part(tmp_path / "alone", 40)
    found = load_visual("vqa", str(alone))
    images = [{row.image for row in rows} for rows in (found.training, found.held_out, found.evaluation)]
    assert [len(some) for some in images] == [34, 2, 4]
    assert sum(map(len, images)) == len(set.union(*images))
    assert evaluation_seen("vqa", str(alone)) == found.evaluation
    shared = tmp_path / "shared.jsonl"
    shared.write_text(json.dumps({"image": str(alone / "images" / "7.png"), "question": "q", "answer": "a"}))
    some = load_visual("vqa", str(alone), str(shared))
    assert len(some.training) + len(some.held_out) == 78
    assert "7.png" not in {row.image.name for row in [*some.training, *some.held_out]}
    other = load_visual("vqa", str(alone), str(folder / "test"))
    assert len(other.evaluation) == 18
    assert len(other.training) + len(other.held_out) == 80


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv"])
def test_tables_say_the_same(folder: Path, tmp_path: Path, ending: str) -> None:
    shutil.copytree(folder / "test" / "images", tmp_path / "images")
    rows = [
        {"image": "3.png", "question": "is it red?", "answer": "no"},
        {"image": "images/4", "question": "q", "answer": "a b"},
    ]
    table = tmp_path / f"all.{ending}"
    delimiter = {"csv": ",", "tsv": "\t"}.get(ending)
    if delimiter:
        lines = [delimiter.join(row.values()) for row in rows]
        table.write_text("\n".join([delimiter.join(rows[0]), *lines]))
    else:
        table.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    wanted = [Seen(tmp_path / "images" / f"{3 + i}.png", row["question"], row["answer"]) for i, row in enumerate(rows)]
    assert read_part("vqa", tmp_path) == read_part("vqa", table) == wanted


def test_captions_have_no_question(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "test" / "images" / "0.png", tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text(
        json.dumps({"file_name": "a.png", "captions": ["a green square", "grass"]})
    )
    assert read_part("captioning", tmp_path) == [
        Seen(tmp_path / "a.png", "", "a green square", ("a green square", "grass"))
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "no.png", "question": "q", "answer": "a"}], "row 1 names the image no.png"),
        ([{"image": "0.png", "question": "q"}], "row 1 has image, question; vqa looks for question and answer"),
        ([], "holds no rows"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        read_part("vqa", tmp_path)


def test_missing_data_and_broken_images(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_visual("vqa", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"needs one table .* and has none"):
        read_part("vqa", tmp_path)
    (tmp_path / "b.png").write_text("no image")
    examples = ImageTexts([Seen(tmp_path / "b.png", "q", "a")], Pictures(AutoProcessor.from_pretrained(model)))
    with pytest.raises(DataError, match=r"b.png is no image that can be read"):
        examples[0]


def test_examples_are_what_the_processor_says(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = AutoProcessor.from_pretrained(model)
    rows = load_visual("vqa", str(folder)).evaluation[::4][:3]  # three images
    examples = ImageTexts(rows, Pictures(processor))
    from PIL import Image

    for row, example in zip(rows, map(examples.__getitem__, range(3)), strict=True):
        whole = processor(
            images=[Image.open(row.image)], text=[prompt_of(processor, row.question)], return_tensors="pt"
        )
        known = whole["input_ids"].shape[1]
        assert torch.equal(example["input_ids"][:, :known], whole["input_ids"])
        assert torch.equal(example["pixel_values"], whole["pixel_values"])
        assert processor.tokenizer.decode(example["input_ids"][0, known:]) == f"{row.answer} </s>"
        assert example["labels"][0].tolist() == [IGNORED] * known + example["input_ids"][0, known:].tolist()
        question = asked(processor, row.image, row.question, AutoConfig.from_pretrained(model))
        assert {n: v.tolist() for n, v in question.items()} == {n: whole[n].tolist() for n in question}
    monkeypatch.setattr(pictures, "MOST_KEPT", 2 * examples[0]["pixel_values"].nbytes)
    sparing = ImageTexts(rows, Pictures(processor))
    for number in (0, 1, 2, 2):
        assert all(torch.equal(value, examples[number][name]) for name, value in sparing[number].items())
    assert [*sparing.pictures.kept] == [row.image for row in rows[:2]]
    batch = examples.collate([examples[0], examples[1]])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["pixel_values"].shape[0] == 2
    assert sum(len(part["input_ids"]) for part in examples.unpadded(2)) == 3


@torch.no_grad()
def test_exact_match_is_that_of_generation(folder: Path, model: Path) -> None:
    """Of a model that has learnt a little: some answers right, some wrong."""
    from fas.training import Stage1Options, fine_tune

    processor, ann = AutoProcessor.from_pretrained(model), LlavaForConditionalGeneration.from_pretrained(model)
    found = load_visual("vqa", str(folder))
    with torch.enable_grad():
        fine_tune(ann, ImageTexts(found.training, Pictures(processor)), Stage1Options(steps=30, batch_size=16, lr=3e-3))
    rows = [*found.evaluation, Seen(found.evaluation[0].image, "is it red?", "maybe not"), *found.held_out]
    examples, right = ImageTexts(rows, Pictures(processor)), 0
    for row in rows:
        inputs = asked(processor, row.image, row.question, ann.config)
        written = ann.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        end = processor.tokenizer.eos_token_id
        wanted = [*processor.tokenizer(row.answer, add_special_tokens=False)["input_ids"], end]
        right += written[: len(wanted)] == wanted
    measured = [examples.evaluate(ann, size) for size in (1, 5)]
    assert 0 < right < len(rows)
    assert [m.value for m in measured] == [right / len(rows)] * 2
    assert measured[0].metric == "exact_match"
    assert measured[0].loss == pytest.approx(measured[1].loss, rel=1e-4)


@pytest.mark.parametrize("parts", [("text",), ("vision", "projector")])
def test_parts_stay_analog(folder: Path, model: Path, parts: Any, tmp_path: Path) -> None:
    ann, processor = LlavaForConditionalGeneration.from_pretrained(model), AutoProcessor.from_pretrained(model)
    batches = ImageTexts(load_visual("vqa", str(folder)).training, Pictures(processor)).for_calibration(8, 4)
    names = {segment.name: segment.family.part for segment in find_segments(ann)}
    snn = fas.convert(fas.prepare(ann, fas.SpikingConfig(parts=parts, timesteps=8), batches))
    assert {part for name, part in names.items() for site in sites_of(snn) if site.startswith(name)} == set(parts)
    found = fas.ledger(snn, batches[0])
    assert [entry.part for entry in found.parts] == ["vision", "projector", "text", "other"]
    assert sum(entry.macs for entry in found.parts) == found.forward.macs
    assert sum(entry.macs_replaced for entry in found.parts) == found.forward.macs_replaced
    assert sum(entry.macs_analog_executed for entry in found.parts) == found.forward.macs_analog_executed
    assert sum(entry.accumulates for entry in found.parts) == sum(p.accumulates for p in found.forward.products)
    for entry in found.parts:
        assert (
            bool(entry.macs_replaced) is bool(entry.neurons) is bool(entry.spikes_per_neuron) is (entry.part in parts)
        )
        assert entry.macs_analog_executed > 0 or entry.part == "projector"
    mean = sum(e.neurons * e.spikes_per_neuron for e in found.parts) / sum(e.neurons for e in found.parts)
    assert mean == pytest.approx(found.forward.spikes_per_neuron)
    assert "By part" in str(found)
    snn.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert sites_of(again).keys() == sites_of(snn).keys()
    with torch.no_grad():
        assert torch.equal(again(**batches[0]).logits, snn(**batches[0]).logits)
        inputs = {name: value[:1] for name, value in batches[0].items()}
        cached = [snn.generate(**inputs, max_new_tokens=4, use_cache=use, do_sample=False) for use in (True, False)]
    assert torch.equal(*cached)


def test_a_part_that_is_not_there_is_named(folder: Path, model: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ConfigError, match="parts: the model has no vision; it has text"):
        fas.prepare(gpt2, fas.SpikingConfig(parts=("vision",)), [{"input_ids": torch.zeros(1, 4, dtype=torch.long)}])
    with pytest.raises(ConfigError, match=r"parts.*ears"):
        fas.SpikingConfig(parts=("ears",))  # type: ignore[arg-type]


def test_a_question_goes_through_every_command(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "snn"
    options = ConvertOptions(
        str(model),
        str(folder),
        out,
        task="vqa",
        timesteps=(8,),
        stage1_steps=30,
        batch_size=16,
        lr=3e-3,
        calibration_sequences=8,
    )
    results = run_conversion(options)
    rows = {row.name: row for row in results.rows}
    assert rows["control"].value > 0.4
    assert rows["snn"].metric == "exact_match"
    assert rows["snn"].items == 18
    loaded, processor = load_spiking(str(out), any_task=True)
    assert type(processor).__name__ == "LlavaProcessor"
    assert sites_of(loaded)

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    again = json.loads(run("eval", str(out), "--json", "-q"))
    assert [row["value"] for row in again["rows"] if row["name"] == "snn"] == [rows["snn"].value]
    image = folder / "test" / "images" / "0.png"
    asking = ("--prompt", "is it red?", "--image", str(image), "--max-new-tokens", "2")
    written = json.loads(run("generate", str(out), *asking, "--ann", "--json", "-q"))
    assert written["new_tokens"] <= 2
    assert written["text"]
    assert written["control"]["text"]
    with pytest.raises(FasError, match="takes it with --image"):
        load_spiking(str(out))
    with pytest.raises(ConfigError, match="reads no image and was given"):
        continue_text(*load_ann("builtin"), "q", Decoding(max_new_tokens=1), image=image)
    ledgers = json.loads(run("energy", str(out), "--sequences", "2", "--json", "-q"))
    assert "vision_tower" in json.dumps(ledgers)
    run(
        "calibrate", str(out), "--timesteps", "4", "--out", str(tmp_path / "more"), "--calibration-sequences", "4", "-q"
    )
    assert load_spiking(str(tmp_path / "more"), any_task=True)


def test_what_does_not_fit_is_refused(folder: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text_column belongs to labelled texts"):
        ConvertOptions(str(model), str(folder), tmp_path, task="vqa", text_column="a")
    with pytest.raises(ConfigError, match="length=9 cuts texts, and vqa needs its answers whole"):
        ConvertOptions(str(model), str(folder), tmp_path, task="vqa", length=9)
    with pytest.raises(FasError, match="builtin is no image-text-to-text model"):
        run_conversion(ConvertOptions("builtin", str(folder), tmp_path / "a", task="vqa"))
    with pytest.raises(FasError, match=r"is no causal language model but .*--task vqa or captioning"):
        run_conversion(ConvertOptions(str(model), "builtin", tmp_path / "b"))


def _bert_words(place: Path) -> Any:
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "picture", "of", "one"]
    (place / "vocab.txt").write_text("\n".join(words))
    return BertTokenizerFast(str(place / "vocab.txt"), model_input_names=["input_ids", "attention_mask"])


def _captioner(name: str, place: Path) -> Path:
    """A tiny random GIT or BLIP with real processor classes, saved at ``place``; BLIP begins texts with a token of its own."""
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        CLIPImageProcessor,
        GitConfig,
        GitForCausalLM,
        GitProcessor,
    )

    tokenizer, size = _bert_words(place), {"height": 16, "width": 16}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "vocab_size": 13}
    vision = shape | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model: Any
    if name == "git":
        git = shape | special | {"bos_token_id": 2}
        model = GitForCausalLM(GitConfig(vision_config=vision, **git, max_position_embeddings=32))
        processor: Any = GitProcessor(CLIPImageProcessor(size=size, do_center_crop=False), tokenizer)
    else:
        text = shape | special | {"encoder_hidden_size": 32, "max_position_embeddings": 32, "bos_token_id": 12}
        model = BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text))
        processor = BlipProcessor(BlipImageProcessor(size=size), tokenizer)
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


@pytest.mark.parametrize("name", ["git", "blip"])
def test_captions(name: str, folder: Path, tmp_path: Path) -> None:
    """Learnt, converted, scored as generation would be, reloaded."""
    place, captions = _captioner(name, tmp_path), tmp_path / "captions"
    shutil.copytree(folder / "train" / "images", captions / "images")
    rows = [
        {"image": str(number), "caption": f"a {colour} picture of one"}
        for number in range(60)
        for colour in [("red", "green", "blue")[number % 3]]
    ]
    (captions / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ConvertOptions(
        str(place), str(captions), tmp_path / "snn", task="captioning", timesteps=(8,), stage1_steps=60, batch_size=16,
        lr=3e-3, calibration_sequences=8,
    )  # fmt: skip
    results = {row.name: row for row in run_conversion(options).rows}
    assert results["control"].value > 0.5
    snn, processor = load_spiking(str(tmp_path / "snn"), any_task=True)
    written, seen = [], evaluation_seen("captioning", str(captions))
    examples = ImageTexts(seen, Pictures(processor), first_token(snn.config))
    assert int(examples[0]["input_ids"][0, 0]) == (12 if name == "blip" else 2)
    for row in seen:
        with torch.no_grad():
            ids = snn.generate(**asked(processor, row.image, "", snn.config), max_new_tokens=8, do_sample=False)  # type: ignore[operator]
        written.append(processor.tokenizer.decode(ids[0], skip_special_tokens=True))
        told = continue_text(snn, processor, "", Decoding(max_new_tokens=8), image=row.image).text  # type: ignore[arg-type]
        assert told.strip() == written[-1]
    right = sum(text == row.answer for text, row in zip(written, seen, strict=True))
    bleu = sacrebleu.corpus_bleu(written, [[row.answer for row in seen]], lowercase=True).score / 100
    assert results["snn"].metrics == pytest.approx({"exact_match": right / 6, "bleu4": bleu})


def test_a_blip_for_answers_is_refused(folder: Path, tmp_path: Path) -> None:
    """It would load as a captioner, without its encoder of questions."""
    config = {"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FasError, match=r"no image-text-to-text model .*BlipForQuestionAnswering"):
        run_conversion(ConvertOptions(str(tmp_path), str(folder), tmp_path / "out", task="vqa"))


def test_drawn_shapes_are_what_their_words_say(tmp_path: Path) -> None:
    """Colour, size and side are measured on the pictures."""
    import random

    from fas.tasks.shapes import COLOURS, SHAPES, drawn, scene

    rng, seen, areas = random.Random(0), set(), defaultdict(list)
    for _ in range(200):
        shown = scene(rng)
        pixels = torch.tensor(list(drawn(shown, rng, 48).get_flattened_data()), dtype=torch.float).view(48, 48, 3)
        ink = (pixels - pixels[0, 0]).abs().sum(-1) > 90
        colour = pixels[ink].median(0).values
        nearest = min(COLOURS, key=lambda name: float((colour - torch.tensor(COLOURS[name])).abs().sum()))
        columns = ink.any(0).nonzero()
        centre = float(columns.min() + columns.max()) / 2
        assert nearest == shown.colour
        assert (centre < 23.5) is (shown.side == "left")
        areas[shown.shape, shown.size].append(int(ink.sum()))
        answers = dict(shown.questions(rng))
        assert {shown.shape, shown.colour, shown.size, shown.side} < {*answers.values()}
        for question, answer in answers.items():
            if answer in ("yes", "no"):
                assert (shown.shape in question or shown.colour in question) is (answer == "yes")
        seen.add(shown)
    assert len({shown.shape for shown in seen}) == len(SHAPES)
    for shape in SHAPES:
        assert max(areas[shape, "small"]) < min(areas[shape, "large"])


def test_shapes_are_data_for_both_tasks(tmp_path: Path) -> None:
    from fas.tasks.shapes import write_shapes

    one, two, other = (write_shapes(tmp_path / name, 30, 10, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    files = [sorted(file.relative_to(one) for file in one.rglob("*.*"))]
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files[0])
    assert (one / "train" / "questions.jsonl").read_bytes() != (other / "train" / "questions.jsonl").read_bytes()
    asked_of, told = load_visual("vqa", str(one)), load_visual("captioning", str(one / "captions"))
    assert len(asked_of.training) + len(asked_of.held_out) == 30 * 6
    assert len(asked_of.evaluation) == 60
    assert len(told.evaluation) == 10
    assert {row.image.resolve() for row in told.evaluation} == {row.image.resolve() for row in asked_of.evaluation}
