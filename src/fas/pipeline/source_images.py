"""What a conversion starts from where images are seen: answered or captioned, classified, or compared with texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import (
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForZeroShotImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    set_seed,
)

from fas.pipeline.classifiers import Head, load_image_classifier
from fas.pipeline.load import load_seeing
from fas.pipeline.options import ConvertOptions
from fas.pipeline.origin import Reader, Source, in_order_of, name_classes, names_of
from fas.progress import Progress
from fas.tasks.examples import Examples
from fas.tasks.glue import CAPTIONING, IMAGE_CLASSIFICATION, VQA, ZERO_SHOT_IMAGES
from fas.tasks.image_classification import ImageLabels, class_names_of, prompted
from fas.tasks.pictures import Pictures
from fas.tasks.reading.journal import Reading
from fas.tasks.vision_language import ImageTexts, first_token
from fas.tasks.visual import Seen, evaluation_seen, load_visual

SEEING: dict[str, Any] = {
    VQA: AutoModelForImageTextToText,
    CAPTIONING: AutoModelForImageTextToText,
    IMAGE_CLASSIFICATION: AutoModelForImageClassification,
    ZERO_SHOT_IMAGES: AutoModelForZeroShotImageClassification,
}
"""The class of model that each task is done with."""


def of_images(options: ConvertOptions, progress: Progress) -> tuple[PreTrainedModel, Source]:
    """The original model, and its examples. Raises `FasError` kinds for what cannot be loaded, or does not fit."""
    reading = Reading(progress)
    found = load_visual(options.task, options.data, options.eval_data, reading)
    reading.tell()
    names = class_names_of(found.training, options.data) if options.task == IMAGE_CLASSIFICATION else ()

    def fresh() -> tuple[PreTrainedModel, Any, bool]:
        if options.task != IMAGE_CLASSIFICATION:
            return (*load_seeing(options.model, options.device, wanted=SEEING[options.task]), False)
        set_seed(options.seed)  # for a new head, which is random
        loaded = load_image_classifier(options.model, Head(names), options.device)
        name_classes(loaded[0].config, in_order_of(loaded[0].config, names))
        return loaded

    ann, processor, new_head = fresh()
    training = _examples(options, ann.config, processor, found.training, found.training)
    held_out, evaluation = (
        replace(training, rows=rows) for rows in (found.held_out, found.evaluation)
    )  # sharing its images
    evaluation = evaluation.some(options.eval_sequences)
    return ann, Source(lambda: fresh()[0], processor, training, held_out, evaluation, reading, new_head)


def image_examples(
    options: ConvertOptions, config: PretrainedConfig, reader: Reader, evaluation: bool, reading: Reading | None = None
) -> Examples:
    """What ``options`` evaluates on, or trains on, as a model of ``config`` sees it; ``reading`` is told what was read."""
    if not evaluation or options.task == ZERO_SHOT_IMAGES:  # whose classes are those of the training part
        found = load_visual(options.task, options.data, options.eval_data, reading)
        return _examples(options, config, reader, found.evaluation if evaluation else found.training, found.training)
    seen = evaluation_seen(options.task, options.data, options.eval_data, reading)
    return _examples(options, config, reader, seen, seen)


def _examples(
    options: ConvertOptions, config: PretrainedConfig, reader: Any, rows: list[Seen], training: list[Seen]
) -> ImageTexts | ImageLabels:
    pictures = Pictures(reader)
    if options.task == IMAGE_CLASSIFICATION:
        return ImageLabels(rows, pictures, names_of(config))
    if options.task == ZERO_SHOT_IMAGES:
        names = class_names_of(training, options.data)
        return ImageLabels(rows, pictures, names, prompted(reader, names, options.template))
    return ImageTexts(rows, pictures, first_token(config))
