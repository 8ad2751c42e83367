"""``fas convert --dry-run``: the plan of a conversion with its memory and time; nothing is trained, loaded or written."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fas.errors import ConfigError, FasError
from fas.pipeline.estimate import HOLES, HOLES_OF_IMAGES, Estimate, Workload
from fas.pipeline.forwards import Architecture, Shape
from fas.pipeline.image_shapes import Amount, counted, described, image_shape, seeing
from fas.pipeline.load import auto_class_of, block_length, pick_device, resolve
from fas.pipeline.machine import memory_of
from fas.pipeline.measure import evaluation_batch, labelled_batch
from fas.pipeline.options import ConvertOptions
from fas.pipeline.recipes import Counts, Recipe
from fas.pipeline.run import CALIBRATION_BATCH
from fas.pipeline.stages import batch_size
from fas.report.inspection import Workload as Inspected
from fas.report.inspection import configuration_of, inspected, throughput
from fas.report.plan import Plan, PlannedStage, Speed
from fas.tasks.examples import Examples
from fas.tasks.glue import CLASSIFIED, LANGUAGE_MODELING, VISUAL, VQA
from fas.tasks.image_classification import ImageLabels
from fas.tasks.labelled import MOST_HELD_OUT, load_labelled
from fas.tasks.language_modeling import Blocks
from fas.tasks.pictures import MOST_KEPT
from fas.tasks.reading.contents import kind_of
from fas.tasks.reading.journal import Reading
from fas.tasks.text import HELD_OUT_SHARE, load_text
from fas.tasks.text_classification import FOR_EACH, FULL_BATCH, LabelledExamples
from fas.tasks.vision_language import ImageTexts

ASSUMED_GPU = Speed(3e13, 1e12, "assumed for a GPU: 30 TFLOP/s in fp32 and 1 TB/s; none is here to be measured")
CHARACTERS_A_TOKEN = 4.0
UNKNOWN = (2_000_000, 200_000)
"""Tokens to train and to evaluate on, or a hundredth as many texts or images, where nothing says it."""
UNKNOWN_CLASSES = 100
BYTES_A_TOKEN, BYTES_A_TEXT = 28, 6_000
"""What examples take in memory: a token of running text with its characters, a labelled text with its numbers."""
ENCODING, MOST_ENCODED = 130, 1_000_000
"""Bytes of a token in the tokenizer's hands, which has so many at once."""
BYTES_A_ROW, BYTES_OF_PROMPTS = 1_000, 48
"""What a row of a table of images takes, and each token of an encoded question."""


def dry_run(options: ConvertOptions, recipe: Recipe | None = None) -> Plan:
    """What `run_conversion` would do. Raises `FasError` kinds for a model or options that it would refuse.

    The model's configuration comes from its folder or the hub's cache, or else from the recipe's ``architecture`` (without
    one, from the hub); of data that is no local file the recipe says how much there is.
    """
    config, origin = _configuration(options, recipe)
    notes: list[str] = []
    taken = _of_images if options.task in VISUAL else _of_texts
    architecture, model, work = taken(options, config, recipe, notes)
    speed = _speed(options.device)
    first = options.configurations()[0]
    shape = Inspected(first.timesteps, options.batch_size or 8, work.length, options.dtype)
    estimate = Estimate(options, architecture, model, work, speed)
    stages = _stages(options, estimate)
    about = recipe.about if recipe is not None else None
    if about is not None and about.note:
        notes.append(about.note)
    return Plan(
        model=options.model,
        configuration=origin,
        recipe=recipe.name if recipe is not None else None,
        about=about.model_dump() if about is not None else None,
        inspection=inspected(options.model, model, first, shape),
        stages=stages,
        speed=speed,
        memory_here=None if speed is ASSUMED_GPU else memory_of(pick_device(options.device)),
        files=_files(options, estimate),
        notes=notes,
        commands=_commands(recipe) if recipe is not None else {},
    )


def _commands(recipe: Recipe) -> dict[str, str]:
    """What to type to run the recipe, and what it is prepared for beside that."""
    found = recipe.about.commands(recipe.name) if recipe.about is not None else {}
    if recipe.compare is not None:
        found["beside other methods"] = recipe.compare.command(recipe.name)
    return found


def _configuration(options: ConvertOptions, recipe: Recipe | None) -> tuple[PreTrainedConfig, str]:
    place = resolve(options.model)
    known = dict(recipe.architecture) if recipe is not None and recipe.options.get("model") == options.model else {}
    try:
        config, converted = configuration_of(options.model, place, here=bool(known))
    except FasError:
        if not known or Path(place).exists():
            raise
        kind = known.pop("model_type", None)
        try:
            return AutoConfig.for_model(
                kind, **known
            ), "the recipe (the hub was not asked, and its cache here has none)"
        except (ValueError, TypeError) as error:
            raise ConfigError(f"architecture of {recipe and recipe.name}: {error}") from None
    if converted:
        raise FasError(f"{options.model} is quantized or converted already; FAS starts from the original model")
    return config, "its folder" if Path(place).exists() else "the hub, or its cache here"


def _architecture(options: ConvertOptions, config: PreTrainedConfig) -> tuple[Architecture, bool]:
    """The model that a conversion starts from, and whether its head is new."""
    stored = auto_class_of(config)
    if options.task == LANGUAGE_MODELING:
        if stored not in (None, AutoModelForCausalLM):
            raise FasError(
                f"{options.model} is not a causal language model: its architectures are {config.architectures}"
            )
        return Architecture(config, AutoModelForCausalLM), False
    task = options.text_task()
    new_head = stored is not AutoModelForSequenceClassification
    if new_head:
        config.num_labels = 1 if task.regression else len(task.labels or ("", ""))
        config.problem_type = "regression" if task.regression else "single_label_classification"
    if config.pad_token_id is None:
        config.pad_token_id = 0  # as the tokenizer would say
    return Architecture(config, AutoModelForSequenceClassification), new_head


def _of_texts(
    options: ConvertOptions, config: PreTrainedConfig, recipe: Recipe | None, notes: list[str]
) -> tuple[Architecture, PreTrainedModel, Workload]:
    """What is converted, itself without memory, and how much goes through it: running text, or labelled texts."""
    architecture, new_head = _architecture(options, config)
    model = _skeleton(architecture)
    length, labelled = block_length(model.config, options.length), options.task != LANGUAGE_MODELING
    amount, held_out = _amount(options, recipe, notes)
    size = 1 if labelled else length
    training, held_out, evaluation = (max(1, count // size) for count in (*amount[:1], held_out, amount[1]))
    each = BYTES_A_TEXT if labelled else BYTES_A_TOKEN * length
    if labelled:
        notes.append(f"every text is taken to have {length} tokens, so times are at most these")
    # labelled texts are short: of those there are more at once
    at_once = labelled_batch(options.task, options.device.startswith("cuda"))
    evaluated = at_once * max(1, FULL_BATCH // length) if labelled else evaluation_batch(length)
    return (
        architecture,
        model,
        Workload(
            **_used(options, LabelledExamples if labelled else Blocks, training, held_out, evaluation),
            example=Shape(1, length, labelled),
            examples="texts" if labelled else f"blocks of {length} tokens",
            evaluated=evaluated,
            fitted=at_once * FOR_EACH if labelled else evaluated,
            calibrated=CALIBRATION_BATCH * FOR_EACH if labelled else CALIBRATION_BATCH,
            new_head=new_head,
            data=each * (training + held_out + evaluation) + ENCODING * min(MOST_ENCODED, training * length),
            holes=HOLES,
        ),
    )


def _of_images(
    options: ConvertOptions, config: PreTrainedConfig, recipe: Recipe | None, notes: list[str]
) -> tuple[Architecture, PreTrainedModel, Workload]:
    """The same of images: with questions or captions, or of classes."""
    there = _pictures(options, recipe, notes)
    architecture, new_head = seeing(options, config, there.classes)
    shape = image_shape(config, options.model, options.task, there.classes, there.writes)
    notes.append(described(shape))
    kind = ImageLabels if options.task in CLASSIFIED else ImageTexts
    used = _used(options, kind, there.training, there.held_out, there.evaluation)
    trained = (options.stage1_steps or there.training) * batch_size(options)
    encoded = used["held_out"] + used["evaluation"]
    encoded += used["calibration"] if options.stage1 == "none" else min(there.training, trained)
    at_once = labelled_batch(options.task, options.device.startswith("cuda"))
    data = BYTES_A_ROW * (there.training + there.held_out + there.evaluation)
    data += min(MOST_KEPT, 4 * math.prod(shape.pixels) * encoded)
    return (
        architecture,
        _skeleton(architecture),
        Workload(
            **used,
            example=shape,
            examples=_name(options.task),
            evaluated=at_once,
            fitted=at_once,
            calibrated=CALIBRATION_BATCH,
            new_head=new_head,
            data=data + (BYTES_OF_PROMPTS * shape.text * encoded if options.task == VQA else 0),
            holes=HOLES_OF_IMAGES,
        ),
    )


def _used(
    options: ConvertOptions, kind: type[Examples], training: int, held_out: int, evaluation: int
) -> dict[str, int]:
    """How many of those that are there a conversion takes for what."""
    return {
        "training": training,
        "held_out": min(held_out, kind.HELD_OUT),
        "evaluation": min(evaluation, options.eval_sequences or evaluation),
        "calibration": min(options.calibration_sequences or kind.CALIBRATION, training),
    }


def _skeleton(architecture: Architecture) -> PreTrainedModel:
    """The model without memory."""
    with torch.device("meta"):
        return architecture.build()


def _pictures(options: ConvertOptions, recipe: Recipe | None, notes: list[str]) -> Amount:
    """How many images there are: counted where they lie here."""
    if kind_of(options.data) is not None:
        reading = Reading()
        found = counted(options, reading)
        notes += reading.lines()
        return found
    usual = (UNKNOWN[0] // 100, UNKNOWN[1] // 100)
    training, evaluation = _said(options, recipe, usual, _name(options.task), notes)
    held_out = min(MOST_HELD_OUT, round(training * HELD_OUT_SHARE))
    said = _counts(options, recipe)
    classes = said.classes if said is not None else None
    if options.task in CLASSIFIED and classes is None:
        classes = UNKNOWN_CLASSES
        notes.append(f"{options.data} is taken to have {classes} classes")
    return Amount(training - held_out, held_out, evaluation, classes or 0)


def _name(task: str) -> str:
    return "images" if task in CLASSIFIED else "images with text"


def _amount(options: ConvertOptions, recipe: Recipe | None, notes: list[str]) -> tuple[tuple[int, int], int]:
    """Texts, or tokens, to train and to evaluate on, and held out: counted where the data lies here."""
    if options.task != LANGUAGE_MODELING:
        return _texts(options, recipe, notes)
    if options.data == "builtin" or kind_of(options.data) is not None:
        tokenizer, reading = _tokenizer(options), Reading()
        text = load_text(options.data, options.eval_data, tokenizer, reading)
        notes += [*reading.lines(), text.note] if text.note else reading.lines()
        each = _characters_a_token(tokenizer, text.training)
        sides = [int(sum(map(len, some)) / each) for some in (text.training, text.evaluation, text.held_out)]
        return (sides[0], sides[1]), sides[2]
    training, evaluation = _said(options, recipe, UNKNOWN, "tokens", notes)
    return (training, evaluation), round(training * HELD_OUT_SHARE)


def _texts(options: ConvertOptions, recipe: Recipe | None, notes: list[str]) -> tuple[tuple[int, int], int]:
    task = options.text_task()
    if kind_of(options.data) is not None:
        reading = Reading()
        rows = load_labelled(task, options.data, options.eval_data, reading)
        notes += reading.lines()
        return (len(rows.training), len(rows.evaluation)), len(rows.held_out)
    usual = (UNKNOWN[0] // 100, UNKNOWN[1] // 100)
    training, evaluation = _said(options, recipe, usual, "texts", notes)
    held_out = min(MOST_HELD_OUT, round(training * HELD_OUT_SHARE))
    return (training - held_out, evaluation), held_out


def _said(
    options: ConvertOptions, recipe: Recipe | None, usual: tuple[int, int], unit: str, notes: list[str]
) -> tuple[int, int]:
    said = _counts(options, recipe)
    if said is not None:
        return said.training, said.evaluation
    notes.append(
        f"{options.data} is not here; taken to have {usual[0]:,} {unit} to train on and {usual[1]:,} to evaluate on"
    )
    return usual


def _counts(options: ConvertOptions, recipe: Recipe | None) -> Counts | None:
    """What the recipe says of its own data."""
    if recipe is None or recipe.options.get("data") not in (None, options.data):
        return None
    return recipe.examples


def _tokenizer(options: ConvertOptions) -> PreTrainedTokenizerBase | None:
    """The model's own, if it is at hand."""
    try:
        return AutoTokenizer.from_pretrained(resolve(options.model), local_files_only=True)
    except Exception:  # without one the estimate is rougher, and that is all
        return None


def _characters_a_token(tokenizer: PreTrainedTokenizerBase | None, documents: list[str]) -> float:
    """Of ``tokenizer`` on the beginning of the text."""
    if tokenizer is None:
        return CHARACTERS_A_TOKEN
    sample = "\n\n".join(documents[:100])[:100_000]
    return len(sample) / max(1, len(tokenizer(sample, verbose=False)["input_ids"]))


def _stages(options: ConvertOptions, estimate: Estimate) -> list[PlannedStage]:
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    try:
        return estimate.stages()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise FasError(
            f"a dry run cannot follow {options.model} at coverage {options.coverage}: a pass depends on values that it does "
            f"not have ({error}); convert it without --dry-run"
        ) from None


def _speed(device: str) -> Speed:
    """What this machine does in a second, from a probe of less than one; for a GPU that is not here it is assumed."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return ASSUMED_GPU
    values = torch.ones(1 << 25, device=pick_device(device))  # beyond any cache
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        float((values + 1.0)[0])  # reading one entry waits for the device
        best = min(best, time.perf_counter() - start)
    return Speed(throughput(), values.nbytes / best, "measured on this machine in a probe")


def _files(options: ConvertOptions, estimate: Estimate) -> dict[str, int]:
    """Bytes of the weights in the folder and, while it runs, beside it; all else is small."""
    size = {"float32": 4, "bfloat16": 2, "float16": 2}[options.dtype] * estimate.parameters
    neurons = 4 * sum(p.width for p in estimate.placements) * (1 + 4 * len(estimate.targets))
    out = options.out.name
    return {
        f"{out}/model.safetensors": size + neurons,
        f"{out}/control/model.safetensors": size,
        f"{out}.work (while it runs)": 2 * estimate.weights + 2 * size + 2 * neurons,
    }
