"""What users hand to the verbs: plain meanings work, all else is refused in one sentence, and the model stays as it was."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding, PreTrainedModel, T5Config, T5ForConditionalGeneration

import fas
from fas.errors import FasError
from fas.given import batch_for, batches_for

CONFIG = fas.SpikingConfig(levels=4, timesteps=2)
IDS = tiny.tokens(2, 6)
BATCH = {"input_ids": IDS}


class Rows:
    """A dataset as torch knows them: rows by number, without an end that iteration would find."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": IDS[index % 2]}


def of_texts() -> Any:
    return datasets.Dataset.from_dict({"text": ["one", "two"]})


def of_ids() -> Any:
    return datasets.Dataset.from_dict({"input_ids": IDS.tolist(), "text": ["one", "two"]})


def used_up() -> Iterator[dict[str, Tensor]]:
    batches = iter([BATCH])
    next(batches)
    return batches


def in_two(ids: Tensor = IDS) -> list[Tensor]:
    return list(ids.split(1))


WORKS: dict[str, Any] = {
    "one batch": lambda: BATCH,
    "what a tokenizer gives": lambda: BatchEncoding({"input_ids": IDS.tolist()}),
    "its arrays": lambda: {"input_ids": IDS.numpy()},
    "a tensor": lambda: IDS,
    "tensors": in_two,
    "sequences": lambda: list(IDS),
    "lists of ids": lambda: IDS.tolist(),
    "arrays": lambda: [IDS.numpy().astype(np.int32)],
    "small integers": lambda: [
        {"input_ids": IDS.to(torch.uint8), "attention_mask": torch.ones(2, 6, dtype=torch.int8)}
    ],
    "a generator": lambda: (batch for batch in [BATCH]),
    "a tuple": lambda: (BATCH,),
    "a DataLoader of dicts": lambda: DataLoader([{"input_ids": row} for row in IDS], batch_size=2),
    "a DataLoader of tensors": lambda: DataLoader(TensorDataset(IDS), batch_size=2),
    "rows by number": Rows,
    "rows of a data set": of_ids,
    "the same in tensors": lambda: of_ids().with_format("torch"),
    "with labels": lambda: [BATCH | {"labels": IDS}],
    "with a class": lambda: [BATCH | {"label": torch.tensor([0, 1])}],
    "padded": lambda: [
        {
            "input_ids": torch.cat([IDS, torch.full((2, 2), 2)], 1),
            "attention_mask": torch.tensor([[1] * 6 + [0] * 2] * 2),
        }
    ],
    "with what it does not take": lambda: [BATCH | {"text": ["one", "two"], "idx": [3, 4]}],
}
REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (lambda: None, "needs batches, and was given None"),
    "an empty list": (list, "no calibration batches.*at least one"),
    "a used generator": (used_up, "no calibration batches.*used before is empty"),
    "an empty data set": (lambda: of_ids().select([]), "no calibration batches"),
    "a text": (lambda: "one two", r"was given text; texts are not tokenized.*tokenizer\("),
    "a path": (lambda: Path("data.txt"), "was given a PosixPath"),
    "texts": (lambda: ["one", "two"], r"batch 0 is text; give what the tokenizer"),
    "lists of texts": (lambda: [["one"], ["two"]], r"batch 0 is text"),
    "texts in a dict": (lambda: {"input_ids": ["one", "two"]}, "input_ids is text"),
    "rows of texts": (of_texts, "holds text, and no input_ids, which the model reads; give what the tokenizer"),
    "several data sets": (lambda: datasets.DatasetDict({"train": of_ids()}), r"several data sets \(train\).*\['train'\]"),
    "a number": (lambda: 3, "was given an int"),
    "numbers": (lambda: [None, 3], "batch 0 is a NoneType|batch 0 is None"),
    "a class": (lambda: dict, "was given the class dict"),
    "inputs and targets": (lambda: DataLoader(TensorDataset(IDS, IDS)), "a list of 2, and does not say which argument"),
    "an empty batch": (lambda: [{}], "batch 0 holds nothing, and no input_ids"),
    "no input": (lambda: [{"attention_mask": torch.ones(2, 6)}], "holds attention_mask, and no input_ids"),
    "a slip": (lambda: [BATCH, {"input_idss": IDS}], "batch 1 has 'input_idss'.*did you mean 'input_ids'"),
    "no sequences": (lambda: [{"input_ids": IDS[:0]}], r"input_ids has the shape \[0, 6\]"),
    "no tokens": (lambda: [{"input_ids": IDS[:, :0]}], r"input_ids has the shape \[2, 0\]"),
    "three axes": (lambda: IDS[None], r"input_ids has the shape \[1, 2, 6\], and must have \[sequences, tokens\]"),
    "floats": (lambda: [{"input_ids": IDS.float()}], r"values of float32.*whole numbers; give ids.long\(\)"),
    "truth values": (lambda: [{"input_ids": IDS > 5}], "values of bool"),
    "no memory": (lambda: [{"input_ids": IDS.to("meta")}], "device meta"),
    "a sparse one": (lambda: [{"input_ids": IDS.to_sparse()}], "sparse"),
    "words it has not": (lambda: [{"input_ids": IDS + 1000}], "the model has 97 tokens, 0 to 96"),
    "negative words": (lambda: [{"input_ids": IDS - 200}], "the model has 97 tokens"),
    "labels as input": (lambda: [{"input_ids": torch.full((1, 4), -100)}], "−100 marks labels"),
    "too long": (lambda: [{"input_ids": tiny.tokens(1, 65)}], "65 tokens a sequence.*context of 64"),
    "another mask": (lambda: [BATCH | {"attention_mask": torch.ones(2, 5)}], r"attention_mask has the shape \[2, 5\]"),
    "fewer masks": (lambda: [BATCH | {"attention_mask": torch.ones(1, 6).long()}], r"attention_mask has the shape \[1, 6\]"),
    "ragged": (lambda: {"input_ids": [[3, 4, 5], [6, 7]]}, r"rows of different lengths \(2, 3\)"),
    "tensors by token": (
        lambda: DataLoader([{"input_ids": row} for row in IDS.tolist()], batch_size=2),
        "list of 6 tensors, by sequence or by token",
    ),
    "a loader that fails": (
        lambda: DataLoader([{"input_ids": IDS[0]}, {"input_ids": IDS[0, :4]}], batch_size=2),
        r"batch 0 could not be read from a DataLoader \(RuntimeError: stack expects",
    ),
    "twice the same": (lambda: [BATCH | {"inputs_embeds": torch.zeros(2, 6, 32)}], "say the same; give one"),
    "another width": (lambda: [{"inputs_embeds": torch.zeros(2, 6, 31)}], r"must have \[sequences, tokens, 32\]"),
    "numbers and words": (lambda: {"input_ids": [[3, "a"]]}, "input_ids"),
}  # fmt: skip
VERBS = ("prepare", "calibrate", "diagnose", "train_blocks", "calibrate_folder", "train_blocks_folder")


def run(verb: str, model: PreTrainedModel, batches: Any, place: Path) -> Any:
    if verb == "prepare":
        return fas.prepare(model, CONFIG, batches)
    if verb == "calibrate":
        return fas.calibrate(model, batches, {"fit_steps": 1})
    if verb == "diagnose":
        return fas.diagnose(model, batches)
    if verb == "train_blocks":
        return fas.train_blocks(model, copy.deepcopy(model), CONFIG, batches, {"steps": 1})
    if not (place / "model").exists():
        model.save_pretrained(place / "model")
    if verb == "calibrate_folder":
        return fas.calibrate_folder(place / "model", place / "out", batches, {"fit_steps": 1}, timesteps=3)
    return fas.train_blocks_folder(place / "model", place / "out", CONFIG, batches, {"steps": 1})


def model_for(verb: str) -> PreTrainedModel:
    is_ann = verb in ("prepare", "train_blocks", "train_blocks_folder")
    return tiny.ann("gpt2") if is_ann else tiny.snn("gpt2", timesteps=2)


def picture(model: PreTrainedModel) -> tuple[Any, ...]:
    modules = [
        (name, type(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        return (
            modules,
            sorted(vars(model)),
            {name: value.clone() for name, value in model.state_dict().items()},
            model(IDS).logits,
        )


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert one[:2] == other[:2]
    assert one[2].keys() == other[2].keys()
    assert all(torch.equal(value, other[2][name]) for name, value in one[2].items())
    assert torch.equal(one[3], other[3])


@pytest.mark.parametrize("kind", WORKS)
@pytest.mark.filterwarnings("ignore:fas.* leaves out")
def test_batches_of_any_plain_kind_are_read_alike(kind: str) -> None:
    model = tiny.ann("gpt2")
    found = batches_for(model, WORKS[kind](), "fas.verb", whole=True)
    assert torch.equal(torch.cat([batch["input_ids"] for batch in found]), IDS)
    assert {name for batch in found for name in batch} <= {"input_ids", "attention_mask"}
    assert all(value.dtype == torch.int64 for batch in found for value in batch.values())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["a tensor", "padded", "a DataLoader of dicts", "with a class"])
def test_verbs_take_them(verb: str, kind: str, tmp_path: Path) -> None:
    run(verb, model_for(verb), WORKS[kind](), tmp_path)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_batch_is_refused_in_a_sentence(kind: str) -> None:
    made, words = REFUSED[kind]
    with pytest.raises(FasError, match=words) as refused:
        batches_for(tiny.ann("gpt2"), made(), "fas.verb")
    assert str(refused.value).startswith("fas.verb")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "kind", ["nothing", "a used generator", "texts", "floats", "words it has not", "ragged", "another mask"]
)
def test_every_verb_refuses_them_and_changes_nothing(verb: str, kind: str, tmp_path: Path) -> None:
    model, (made, words) = model_for(verb), REFUSED[kind]
    before = picture(model)
    with pytest.raises(FasError, match=words):
        run(verb, model, made(), tmp_path)
    assert_same(picture(model), before)
    assert not list(tmp_path.glob("out*"))


LEDGER: dict[str, tuple[Any, str]] = {
    "two batches": ([BATCH, BATCH], "runs one batch, and a list holds several"),
    "none": ([], "runs one batch, and a list holds none"),
    "text": ("one", "was given text"),
    "floats": (IDS.float(), "values of float32"),
}


@pytest.mark.parametrize("kind", LEDGER)
def test_the_ledger_refuses_what_is_no_batch(kind: str) -> None:
    batch, words = LEDGER[kind]
    with pytest.raises(FasError, match=words):
        fas.ledger(tiny.snn("gpt2", timesteps=2), batch)


def test_the_ledger_takes_one_batch_in_any_form() -> None:
    model = tiny.snn("gpt2", timesteps=2)
    forms = (BATCH, IDS, [BATCH], DataLoader([{"input_ids": row} for row in IDS], batch_size=2))
    first, *others = (fas.ledger(model, form).to_dict() for form in forms)
    assert all(other == first for other in others)


CONFIGS: dict[str, tuple[Any, str]] = {
    "none": (None, r"config is None; fas.SpikingConfig\(\) has the usual values"),
    "a path": ("config.json", r"config is a str; read the file"),
    "the class": (fas.SpikingConfig, "config is the class SpikingConfig; call it"),
    "the batches": ([BATCH], "config is a list.*the batches behind it"),
    "options": (fas.CalibrationOptions(), "config is a CalibrationOptions"),
    "unknown fields": ({"coverge": "ffn"}, "unknown setting 'coverge'"),
    "wrong values": ({"levels": "eight"}, "levels='eight' is not valid"),
    "numbers for names": ({3: 4}, "config is a dict"),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("verb", ["prepare", "train_blocks", "train_blocks_folder"])
def test_what_is_no_configuration_is_refused(
    kind: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, words = CONFIGS[kind]
    monkeypatch.setattr("test_given.CONFIG", config)
    model = tiny.ann("gpt2")
    before = picture(model)
    with pytest.raises(FasError, match=words):
        run(verb, model, [BATCH], tmp_path)
    assert_same(picture(model), before)


def test_a_dict_with_the_fields_is_a_configuration() -> None:
    one = fas.prepare(tiny.ann("gpt2"), {"levels": 4, "timesteps": 2}, [BATCH])
    other = fas.prepare(tiny.ann("gpt2"), CONFIG, [BATCH])
    assert_same(picture(one), picture(other))


class Pipeline:
    """As those of transformers hold their model."""

    def __init__(self) -> None:
        self.model = tiny.ann("gpt2")


MODELS: dict[str, tuple[Any, str]] = {
    "a path": ("gpt2", "model is a str; load it first.*from_pretrained"),
    "none": (None, "model is None"),
    "the class": (type(tiny.ann("gpt2")), "model is the class GPT2LMHeadModel; load"),
    "a pipeline": (Pipeline(), "model is a Pipeline; give its .model"),
    "a dict": (BATCH, "model is a dict"),
}
ON_MODELS: dict[str, Any] = {
    "prepare": lambda model: fas.prepare(model, CONFIG, [BATCH]),
    "convert": fas.convert,
    "calibrate": lambda model: fas.calibrate(model, [BATCH]),
    "diagnose": lambda model: fas.diagnose(model, [BATCH]),
    "ledger": lambda model: fas.ledger(model, BATCH),
    "train_blocks": lambda model: fas.train_blocks(model, model, CONFIG, [BATCH]),
    "accelerated": lambda model: fas.accelerated(model).__enter__(),
    "adaptive": lambda model: fas.adaptive(model).__enter__(),
    "memory_limit": lambda model: fas.memory_limit(model, "1GiB").__enter__(),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("verb", ON_MODELS)
def test_what_is_no_model_is_refused(kind: str, verb: str) -> None:
    model, words = MODELS[kind]
    with pytest.raises(FasError, match=f"^fas.{verb} needs .*{words}"):
        ON_MODELS[verb](model)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_refused_with_what_is_inside(wrap: Any) -> None:
    with pytest.raises(FasError, match="give the GPT2LMHeadModel inside it"):
        fas.prepare(wrap(tiny.ann("gpt2")), CONFIG, [BATCH])


def test_models_that_are_not_of_transformers_are_refused() -> None:
    with pytest.raises(FasError, match="model is a Linear; FAS converts models of transformers"):
        fas.prepare(nn.Linear(2, 2), CONFIG, [BATCH])  # type: ignore[type-var]


ORDER: dict[str, tuple[Any, str]] = {
    "convert an ANN": (lambda: fas.convert(tiny.ann("gpt2")), "has no spiking sites; convert it first"),
    "calibrate an ANN": (lambda: fas.calibrate(tiny.ann("gpt2"), [BATCH]), "has no spiking sites"),
    "calibrate a QCFS model": (lambda: fas.calibrate(tiny.qcfs_model("gpt2"), [BATCH]), "convert the model first"),
    "diagnose an ANN": (lambda: fas.diagnose(tiny.ann("gpt2"), [BATCH]), "has no spiking sites"),
    "diagnose a QCFS model": (lambda: fas.diagnose(tiny.qcfs_model("gpt2"), [BATCH]), "convert the model"),
    "prepare twice": (lambda: fas.prepare(tiny.qcfs_model("gpt2"), CONFIG, [BATCH]), "has spiking sites already"),
    "prepare an SNN": (lambda: fas.prepare(tiny.snn("gpt2"), CONFIG, [BATCH]), "has spiking sites already"),
    "accelerate an ANN": (lambda: fas.accelerated(tiny.ann("gpt2")).__enter__(), "has no spiking sites"),
    "adapt a QCFS model": (lambda: fas.adaptive(tiny.qcfs_model("gpt2")).__enter__(), "convert it first"),
    "train an SNN": (lambda: fas.train_blocks(tiny.snn("gpt2"), tiny.ann("gpt2"), CONFIG, [BATCH]), "already"),
    "teach by an SNN": (lambda: fas.train_blocks(tiny.ann("gpt2"), tiny.snn("gpt2"), CONFIG, [BATCH]), "already"),
    "teach oneself": (lambda: fas.train_blocks(*[tiny.ann("gpt2")] * 2, CONFIG, [BATCH]), "was given one object"),
    "another teacher": (
        lambda: fas.train_blocks(tiny.ann("gpt2"), tiny.ann("opt"), CONFIG, [BATCH]),
        "a GPT2LMHeadModel and a OPTForCausalLM",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ORDER)
def test_verbs_in_the_wrong_order_are_refused(kind: str) -> None:
    attempt, words = ORDER[kind]
    with pytest.raises(FasError, match=words):
        attempt()


MORE: dict[str, tuple[Any, str]] = {
    "resume": (lambda place: fas.calibrate(tiny.snn("gpt2"), [BATCH], resume=True), "resume is a bool"),
    "activations": (lambda place: fas.calibrate(tiny.snn("gpt2"), [BATCH], activations=3), "activations is an int"),
    "fit": (lambda place: fas.prepare(tiny.ann("gpt2"), CONFIG, [BATCH], fit="mmse"), "fit='mmse' is not valid"),
    "settled": (lambda place: fas.adaptive(tiny.snn("gpt2"), settled="no").__enter__(), "settled='no'"),
    "device": (
        lambda place: fas.calibrate_folder("m", place / "o", [BATCH], device="gpu"),
        "device='gpu' cannot be used",
    ),
    "no folder": (lambda place: fas.calibrate_folder(None, place / "o", [BATCH]), "folder is None"),
    "a model": (lambda place: fas.calibrate_folder(tiny.ann("gpt2"), place / "o", [BATCH]), "save the model first"),
    "auto_class": (
        lambda place: fas.train_blocks_folder("m", place / "o", CONFIG, [BATCH], auto_class="AutoModel"),
        "auto_class is a str",
    ),
    "stage": (
        lambda place: fas.train_blocks_folder("m", place / "o", CONFIG, [BATCH], stage="ann"),
        "stage='ann' is not valid; give one of qcfs, snn",
    ),
    "work": (
        lambda place: fas.train_blocks(tiny.ann("gpt2"), tiny.ann("gpt2"), CONFIG, [BATCH], work=3),
        "work is an int",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MORE)
def test_other_arguments_are_refused(kind: str, tmp_path: Path) -> None:
    attempt, words = MORE[kind]
    with pytest.raises(FasError, match=words):
        attempt(tmp_path)
    assert not list(tmp_path.iterdir())


def test_converting_again_changes_nothing() -> None:
    model = tiny.snn("gpt2")
    before = picture(model)
    assert fas.convert(model) is model
    assert_same(picture(model), before)


OPTIONS: dict[str, tuple[Any, str]] = {
    "unknown": ({"fit_stpes": 1}, "unknown option 'fit_stpes'; known options are coarse"),
    "of the other verb": (fas.BlockOptions(), "takes options=fas.CalibrationOptions"),
    "a number": (3, "options is an int"),
    "words": ({"fit_steps": "many"}, "fit_steps='many' is not valid: it must be a whole number"),
    "half steps": ({"fit_steps": 1.5}, "fit_steps=1.5 is not valid"),
    "a word for yes": ({"coarse": "no"}, "coarse='no' is not valid: it must be True or False"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_that_are_none_are_refused(kind: str) -> None:
    options, words = OPTIONS[kind]
    with pytest.raises(FasError, match=words):
        fas.calibrate(tiny.snn("gpt2"), [BATCH], options)


@pytest.mark.parametrize("timesteps", ["eight", 0, 2.5, True, [4], {}])
def test_a_time_that_is_none_is_refused(timesteps: Any) -> None:
    model = tiny.snn("gpt2")
    before = picture(model)
    with pytest.raises(FasError, match=re.escape(f"timesteps={timesteps!r} is not valid")):
        model.set_timesteps(timesteps)
    with pytest.raises(FasError, match=re.escape(f"timesteps={timesteps!r} is not valid")):
        fas.SpikingConfig(timesteps=timesteps)
    assert_same(picture(model), before)


def test_settings_of_a_time_that_are_unknown_are_refused() -> None:
    with pytest.raises(FasError, match="unknown setting 'codng'"):
        tiny.snn("gpt2").set_timesteps(4, codng="rate")


@pytest.mark.parametrize("progress", ["yes", 1, print, fas.SpikingConfig])
def test_a_progress_that_is_none_is_refused(progress: Any) -> None:
    with pytest.raises(FasError, match="give True for a bar"):
        fas.prepare(tiny.ann("gpt2"), CONFIG, [BATCH], progress=progress)


@pytest.mark.parametrize("confidence", ["high", True, float("nan"), -1])
def test_a_confidence_that_is_none_is_refused(confidence: Any) -> None:
    with pytest.raises(FasError, match="no probability"), fas.adaptive(tiny.snn("gpt2"), confidence=confidence):
        pass


# Padding --------------------------------------------------------------------------------------------------------------


def padded(left: bool = False) -> dict[str, Tensor]:
    """Rows of 3, 6, 3 and 5 tokens, as a collator of a classifier gives them."""
    ids, mask = torch.full((4, 8), 2), torch.zeros(4, 8, dtype=torch.int64)
    for row, length in enumerate((3, 6, 3, 5)):
        at = slice(8 - length, 8) if left else slice(0, length)
        ids[row, at], mask[row, at] = tiny.tokens(1, length, seed=row)[0], 1
    kinds = torch.arange(8).expand(4, 8) % 2
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds, "labels": torch.tensor([0, 1, 2, 0])}


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_cut_away(left: bool) -> None:
    model = tiny.ann("bert_sequence")
    found = batches_for(model, [padded(left)], "fas.calibrate", whole=True)
    assert [tuple(batch["input_ids"].shape) for batch in found] == [(2, 3), (1, 6), (1, 5)]
    assert all(bool(batch["attention_mask"].all()) and "labels" not in batch for batch in found)
    whole = padded(left)
    for row, (batch, at) in enumerate([(found[0], 0), (found[1], 0), (found[0], 1), (found[2], 0)]):
        real = whole["attention_mask"][row].bool()
        for name in ("input_ids", "token_type_ids"):
            assert torch.equal(batch[name][at], whole[name][row][real])


def test_batches_without_padding_stay_the_same_objects() -> None:
    batch = BATCH | {"attention_mask": torch.ones_like(IDS)}
    (found,) = batches_for(tiny.ann("gpt2"), [batch], "fas.calibrate", whole=True)
    assert all(found[name] is value for name, value in batch.items())


def test_classifiers_are_calibrated_on_what_their_collator_gives() -> None:
    model = tiny.snn("bert_sequence", timesteps=2)
    assert len(fas.calibrate(model, [padded(), padded(left=True)])) == 2
    assert fas.diagnose(model, padded()).kl >= 0


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 0, 1, 1, 1, 1], [1] * 6], "padding between the tokens of row 0"),
        ([[0] * 6, [0] * 6], "padding alone"),
    ],
)
def test_padding_that_cannot_be_cut_is_refused(mask: list[list[int]], words: str) -> None:
    with pytest.raises(FasError, match=words):
        batches_for(tiny.ann("gpt2"), [BATCH | {"attention_mask": torch.tensor(mask)}], "fas.calibrate", whole=True)


def test_packed_pictures_beside_padded_text_are_refused() -> None:
    from fas.given.padding import without_padding

    batch = padded() | {"pixel_values": torch.zeros(20, 12)}
    with pytest.raises(FasError, match="pixel_values has 20 rows where it has 4 sequences"):
        without_padding([batch], "fas.calibrate")


def t5() -> PreTrainedModel:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=44, num_layers=2, num_heads=4, decoder_start_token_id=2)
    ).eval()


def test_labels_of_an_encoder_decoder_say_what_its_decoder_reads() -> None:
    model, labels = t5(), torch.tensor([[5, 6, 7], [8, -100, -100]])
    (found,) = batches_for(model, BATCH | {"labels": labels}, "fas.prepare")
    assert found["decoder_input_ids"].tolist() == [[2, 5, 6], [2, 8, 2]] or found["decoder_input_ids"].shape == (2, 3)
    assert found["decoder_attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    fas.convert(fas.prepare(model, {"levels": 4, "timesteps": 2}, BATCH | {"labels": labels}))
    fas.calibrate(model, BATCH | {"labels": labels})


# Kinds of numbers, places and names -----------------------------------------------------------------------------------


def test_pictures_get_the_dtype_of_the_model() -> None:
    model = tiny.ann("vit_image").bfloat16()
    pixels = torch.rand(2, 3, 12, 12).double()
    assert [batch["pixel_values"].dtype for batch in batches_for(model, pixels, "fas.verb")] == [torch.bfloat16]
    assert batches_for(model, list(pixels), "fas.verb")[0]["pixel_values"].shape == (1, 3, 12, 12)
    with pytest.raises(FasError, match=r"values of uint8.*processor"):
        batches_for(model, (pixels * 255).to(torch.uint8), "fas.verb")


def test_what_is_left_out_is_said() -> None:
    with pytest.warns(UserWarning, match="fas.verb leaves out text, idx of the batches, which GPT2LMHeadModel"):
        batches_for(tiny.ann("gpt2"), [BATCH | {"text": ["a", "b"], "idx": 3}], "fas.verb")


def test_the_ledger_keeps_labels() -> None:
    assert "labels" in batch_for(tiny.ann("gpt2"), BATCH | {"labels": IDS}, "fas.ledger")


def test_roberta_has_fewer_positions_than_its_configuration_says() -> None:
    model = tiny.ann("roberta_mlm")
    with pytest.raises(FasError, match="context of 61"):
        batches_for(model, tiny.tokens(1, 62), "fas.verb")
    with torch.no_grad():
        model(**batches_for(model, tiny.tokens(1, 61), "fas.verb")[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_go_where_the_model_is() -> None:
    model = tiny.ann("gpt2").cuda()
    assert batches_for(model, BATCH, "fas.verb")[0]["input_ids"].is_cuda


def test_training_of_blocks_that_fails_leaves_the_ann(monkeypatch: pytest.MonkeyPatch) -> None:
    from fas.training.walk import Walk

    def broken(*_: Any) -> None:
        raise RuntimeError("unforeseen")

    model = tiny.ann("llama")
    before = picture(model)
    monkeypatch.setattr(Walk, "_behind", broken)  # when all blocks are trained
    with pytest.raises(RuntimeError, match="unforeseen"):
        fas.train_blocks(model, copy.deepcopy(model), CONFIG, [BATCH], {"steps": 2})
    assert_same(picture(model), before)
