"""Tasks on labelled texts: those of GLUE (Wang et al. 2018) with their metrics, and what a user brings.

Data of the hub (``nyu-mll/glue``), or the same as local files in any of the layouts in which they are handed around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fas.errors import ConfigError
from fas.tasks.reading.tables import Place


@dataclass(frozen=True)
class Layout:
    """Where a table holds text, its pair and the label."""

    text: Place
    label: Place
    pair: Place | None = None
    columns: int | None = None
    """How many columns at least a file without header has; a smaller number is another layout."""
    more: bool = False
    """Whether rows of such a file may have further columns than the first row, or fewer, down to ``columns``."""

    @property
    def places(self) -> list[Place]:
        return [place for place in (self.text, self.pair, self.label) if place is not None]

    @property
    def texts(self) -> list[Place]:
        """The column of the text, and of its pair if there is one."""
        return [place for place in (self.text, self.pair) if place is not None]

    @property
    def named(self) -> bool:
        """Whether it belongs to tables with a header."""
        return isinstance(self.text, str)


@dataclass(frozen=True)
class TextTask:
    """A task on labelled texts."""

    name: str
    layouts: tuple[Layout, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    """The one that counts first."""
    labels: tuple[str, ...] | None = None
    """Names of the classes in their order; None: as the training data has them, or a regression."""
    regression: bool = False
    hub: str | None = None
    validation: str = "validation"
    """Split of the hub that is evaluated on; test labels of GLUE are not public."""


_ONE = (Layout("sentence", "label"), Layout(0, 1, columns=2))
_TWO = (Layout("sentence1", "label", "sentence2"), Layout(0, 2, 1, columns=3))
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, TextTask] = {
    task.name: replace(task, hub=f"nyu-mll/glue:{task.name}")
    for task in (
        TextTask("sst2", _ONE, labels=("negative", "positive")),
        TextTask(
            "mrpc",
            (_TWO[0], Layout("#1 String", "Quality", "#2 String"), _TWO[1]),
            ("f1", "accuracy"),
            labels=("not_equivalent", "equivalent"),
        ),
        TextTask(
            "stsb",
            (
                _TWO[0],
                Layout("sentence1", "score", "sentence2"),
                Layout(5, 4, 6, columns=7, more=True),  # the benchmark's own files
                _TWO[1],
            ),
            ("spearman", "pearson"),
            regression=True,
        ),
        TextTask(
            "cola",
            (_ONE[0], Layout(3, 1, columns=4), _ONE[1]),
            ("matthews", "accuracy"),
            labels=("unacceptable", "acceptable"),
        ),
        TextTask("rte", _TWO, labels=_ENTAILMENT),
        TextTask(
            "qnli",
            (Layout("question", "label", "sentence"), _TWO[1]),
            labels=_ENTAILMENT,
        ),
        TextTask(
            "qqp",
            (Layout("question1", "label", "question2"), Layout("question1", "is_duplicate", "question2"), _TWO[1]),
            ("f1", "accuracy"),
            labels=("not_duplicate", "duplicate"),
        ),
        TextTask(
            "mnli",
            (
                Layout("premise", "label", "hypothesis"),
                Layout("sentence1", "gold_label", "sentence2"),
                *_TWO,
            ),
            labels=("entailment", "neutral", "contradiction"),
            validation="validation_matched",
        ),
        TextTask("wnli", _TWO, labels=("not_entailment", "entailment")),
    )
}

_TEXT_NAMES = ("text", "sentence", "content", "review", "document")
_LABEL_NAMES = ("label", "labels", "class", "target")
LABEL_HEADERS = {
    *_LABEL_NAMES,
    "score",
    "sentiment",
    "stars",
    "rating",
    "category",
    "gold_label",
    "quality",
    "is_duplicate",
}
"""What the column of labels is called in a first line."""
OWN: dict[str, TextTask] = {
    "text-classification": TextTask(
        "text-classification",
        tuple(Layout(text, label) for text in _TEXT_NAMES for label in _LABEL_NAMES),
    ),
    "text-regression": TextTask(
        "text-regression",
        tuple(Layout(text, label) for text in _TEXT_NAMES for label in ("score", *_LABEL_NAMES)),
        ("spearman", "pearson"),
        regression=True,
    ),
}
LANGUAGE_MODELING = "language-modeling"
VQA, CAPTIONING = "vqa", "captioning"
IMAGE_CLASSIFICATION, ZERO_SHOT_IMAGES = "image-classification", "zero-shot-image-classification"
TEMPLATE = "a photo of a {}."
"""Of a text that an image is compared with (Radford et al. 2021)."""
CLASSIFIED = (IMAGE_CLASSIFICATION, ZERO_SHOT_IMAGES)
VISUAL = (VQA, CAPTIONING, *CLASSIFIED)
"""Tasks on images (`fas.tasks.visual`)."""
TASKS: tuple[str, ...] = (LANGUAGE_MODELING, *GLUE, *OWN, *VISUAL)


def text_task(name: str, columns: Sequence[str | None] = (None, None, None)) -> TextTask:
    """The task of that name; ``columns`` (text, pair, label) are the user's own, names or numbers from 0.

    Raises `ConfigError` for an unknown task, or columns of which text or label is missing.
    """
    task = GLUE.get(name) or OWN.get(name)
    if task is None:
        raise ConfigError(f"task={name!r} is not known; choose one of {', '.join(TASKS)}")
    if not any(columns):
        return task
    text, pair, label = (int(place) if place is not None and place.isdigit() else place for place in columns)
    if text is None or label is None:
        raise ConfigError("--text-column and --label-column belong together; give both (and --pair-column for pairs)")
    kinds = {isinstance(place, int) for place in (text, pair, label) if place is not None}
    if len(kinds) > 1:
        raise ConfigError(
            f"columns {text!r}, {pair!r}, {label!r} mix names and numbers; give names, or numbers from 0 for a file "
            "without header"
        )
    return replace(task, layouts=(Layout(text, label, pair),))
