"""What a conversion starts from, by task: the original model, as often as it is asked for, and the task's examples."""

from __future__ import annotations

from typing import cast

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from fas.errors import ConfigError, FasError
from fas.pipeline.classifiers import Head, load_classifier
from fas.pipeline.load import auto_class_of, block_length, load_ann, original_class_of, reader_of, resolve
from fas.pipeline.options import ConvertOptions
from fas.pipeline.origin import Reader, Source, in_order_of, name_classes, names_of
from fas.pipeline.source_images import SEEING, image_examples, of_images
from fas.progress import Progress
from fas.tasks.examples import Examples
from fas.tasks.glue import LANGUAGE_MODELING, VISUAL
from fas.tasks.labelled import class_names, evaluation_rows, load_labelled
from fas.tasks.language_modeling import Blocks, encode_blocks
from fas.tasks.reading.journal import Reading
from fas.tasks.sliding import SlidingText, sliding_text
from fas.tasks.text import evaluation_text, load_text
from fas.tasks.text_classification import encode_labelled


def source_of(options: ConvertOptions, progress: Progress) -> tuple[PreTrainedModel, Source]:
    """The original model of ``options``, and what it is trained and measured on.

    Raises `FasError` kinds for what cannot be loaded, or a model whose head does not fit the data.
    """
    if options.task == LANGUAGE_MODELING:
        return _of_text(options, progress)
    if options.task in VISUAL:
        return of_images(options, progress)
    return _of_labelled_texts(options, progress)


def _of_text(options: ConvertOptions, progress: Progress) -> tuple[PreTrainedModel, Source]:
    config, _ = original_class_of(options.model)
    tokenizer = reader_of(resolve(options.model))  # what can be refused of the data is, before weights are loaded
    length, reading = block_length(config, options.length), Reading(progress)
    text = load_text(options.data, options.eval_data, tokenizer, reading)
    reading.tell()
    if text.note:
        progress.note(text.note)
    training, held_out, evaluation = (
        Blocks(encode_blocks(tokenizer, documents, length, what))
        for documents, what in (
            (text.training, "training text"), (text.held_out, "held-out training text"), (text.evaluation, "evaluation text"),
        )
    )  # fmt: skip
    evaluation = evaluation.some(options.eval_sequences)
    ann, tokenizer = load_ann(options.model, options.device)
    return ann, Source(
        lambda: load_ann(options.model, options.device)[0], tokenizer, training, held_out, evaluation, reading
    )


def _of_labelled_texts(options: ConvertOptions, progress: Progress) -> tuple[PreTrainedModel, Source]:
    task, reading = options.text_task(), Reading(progress)
    rows = load_labelled(task, options.data, options.eval_data, reading)
    reading.tell()
    if rows.removed:
        progress.note(f"{rows.removed} training texts stand in the evaluation data too and are left out")
    names = None if task.regression else class_names(task, rows.training, options.data)
    head = Head(names)

    def fresh() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, bool]:
        set_seed(options.seed)  # for a new head, which is random
        loaded = load_classifier(options.model, head, options.device)
        name_classes(loaded[0].config, in_order_of(loaded[0].config, names))
        return loaded

    ann, tokenizer, new_head = fresh()
    length = block_length(ann.config, options.length)
    numbered = names_of(ann.config)
    training, held_out, evaluation = (
        encode_labelled(tokenizer, task, numbered, some, length)
        for some in (rows.training, rows.held_out, rows.evaluation)
    )
    cut = training.truncated + held_out.truncated + evaluation.truncated
    if cut:
        progress.note(f"{cut} of {sum(map(len, (training, held_out, evaluation)))} texts are cut at {length} tokens")
    evaluation = evaluation.some(options.eval_sequences)
    return ann, Source(lambda: fresh()[0], tokenizer, training, held_out, evaluation, reading, new_head)


def evaluation_of(
    options: ConvertOptions, config: PretrainedConfig, reader: Reader, reading: Reading | None = None
) -> Examples:
    """What ``options`` evaluates on, as a model of ``config``, which has a head for it, reads it.

    ``reading`` is told what was read and skipped. Raises `FasError` kinds for another head or data that cannot be read.
    """
    length = _length(options, config)
    if options.task in VISUAL:
        return image_examples(options, config, reader, True, reading).some(options.eval_sequences)
    tokenizer = cast(PreTrainedTokenizerBase, reader)
    if options.task == LANGUAGE_MODELING:
        documents = evaluation_text(options.data, options.eval_data, tokenizer, reading)
        return Blocks(encode_blocks(tokenizer, documents, length, "evaluation text")).some(options.eval_sequences)
    task = options.text_task()
    rows = evaluation_rows(task, options.data, options.eval_data, reading)
    return encode_labelled(tokenizer, task, names_of(config), rows, length).some(options.eval_sequences)


def training_of(
    options: ConvertOptions, config: PretrainedConfig, reader: Reader, reading: Reading | None = None
) -> Examples:
    """What ``options`` trains on, read, told and refused in the same way."""
    length = _length(options, config)
    if options.task in VISUAL:
        return image_examples(options, config, reader, False, reading)
    tokenizer = cast(PreTrainedTokenizerBase, reader)
    if options.task == LANGUAGE_MODELING:
        documents = load_text(options.data, options.eval_data, tokenizer, reading).training
        return Blocks(encode_blocks(tokenizer, documents, length, "training text"))
    task = options.text_task()
    labelled = load_labelled(task, options.data, options.eval_data, reading).training
    return encode_labelled(tokenizer, task, names_of(config), labelled, length)


def _length(options: ConvertOptions, config: PretrainedConfig) -> int:
    """Tokens of an example; raises `FasError` where the model has no head for the task."""
    cls = auto_class_of(config)
    wanted = {LANGUAGE_MODELING: AutoModelForCausalLM, **SEEING}
    if cls is not wanted.get(options.task, AutoModelForSequenceClassification):
        kind = ", ".join(config.architectures or ["model of an unknown class"])
        raise FasError(f"{options.model} is a {kind}, which does not fit the task {options.task}")
    return block_length(config, options.length)


def sliding_of(
    options: ConvertOptions,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    stride: int,
    count: int | None,
) -> SlidingText:
    """The text of `evaluation_of`, at most ``count`` documents of it, under a window that moves by ``stride``. Raises
    `ConfigError` for labelled texts or a stride that does not fit."""
    if options.task != LANGUAGE_MODELING:
        raise ConfigError(
            f"stride={stride} moves a window over text, and {options.model} is measured by {options.task}"
        )
    documents = evaluation_text(options.data, options.eval_data, tokenizer)
    return sliding_text(tokenizer, documents, _length(options, config), stride, count)
