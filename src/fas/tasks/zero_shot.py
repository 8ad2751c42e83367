"""Tasks of lm-evaluation-harness, by name, from YAML, or from a file of questions, as something to measure a model on."""

from __future__ import annotations

import difflib
import io
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from fas.conversion.hub import quickly, why_not
from fas.errors import ConfigError, DataError, FasError
from fas.progress import Progress
from fas.tasks import choices
from fas.tasks.examples import Evaluation, Scored
from fas.tasks.harness import HarnessLM
from fas.tasks.reading.contents import kind_of
from fas.tasks.reading.journal import Reading

BOOTSTRAPPED = 1000
"""Resamples where a standard error has no closed form (perplexity)."""
_NORMALISED = ("hellaswag", "arc_challenge", "openbook")
"""Tasks that are usually told by the accuracy per character of the choice; both accuracies are always computed."""
_FIRST = ("acc", "acc_norm", "exact_match", "word_perplexity", "perplexity")
_YAML = (".yaml", ".yml")
_NAMED = re.compile(r"^\s*-?\s*(?:task|group|tag):[ \t]*([^\s#]+)", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """How tasks are asked."""

    limit: int | None = None
    """At most so many items of each, evenly spaced; None: all."""
    num_fewshot: int | None = None
    """Solved examples in front of each question; None: as the task says, or none."""
    seed: int = 0
    length: int | None = None
    """Tokens of context; None: the model's."""


@dataclass(frozen=True)
class HarnessTask(Scored):
    """One task, or a group of tasks with a figure of its own, loaded and ready."""

    name: str
    loaded: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    asked: Asked = Asked()

    def evaluate(
        self, model: PreTrainedModel, batch_size: int, progress: Progress | None = None, title: str = ""
    ) -> Evaluation:
        """Score ``model``; what goes wrong inside is the result's ``error``, so that other tasks keep theirs."""
        from lm_eval.evaluator import evaluate

        with quietly():
            lm = HarnessLM(model, self.tokenizer, batch_size, self.asked.length, progress, f"{title}, {self.name}")
        try:
            with quietly():
                set_seed(self.asked.seed)
                for task in self.loaded["tasks"].values():
                    task.set_fewshot_seed(self.asked.seed)  # else the second model would be shown other examples
                found: Any = evaluate(
                    lm, self.loaded, samples=self._chosen(), bootstrap_iters=BOOTSTRAPPED, log_samples=False
                )
        except Exception as error:  # of lm-eval, the task's own code, the device: all are told in the row
            return Evaluation(math.nan, 0, error=_reason(error))
        metrics, errors = figures(found["results"][self.name], self.name)
        items = sum(count["effective"] for count in found["n-samples"].values())
        loss = lm.nats / lm.tokens if lm.tokens else math.nan
        return Evaluation(loss, lm.tokens, None, metrics, errors.get(next(iter(metrics))), items, len(lm.truncated))

    def _chosen(self) -> dict[str, list[int]] | None:
        """The numbers of the items of each task, or None for all."""
        if self.asked.limit is None:
            return None
        counts = {name: len(task.eval_docs) for name, task in self.loaded["tasks"].items()}
        return {
            name: torch.linspace(0, count - 1, min(count, self.asked.limit)).long().tolist()
            for name, count in counts.items()
        }


def figures(entry: dict[str, Any], task: str) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and their standard errors from an ``entry`` of lm-eval's results, the one that counts first."""
    named = {
        key.removesuffix(",none"): float(value)
        for key, value in entry.items()
        if "," in key and isinstance(value, int | float) and not isinstance(value, bool)
    }
    errors = {name.replace("_stderr", "", 1): value for name, value in named.items() if "_stderr" in name}
    order = ("acc_norm", *_FIRST) if task.startswith(_NORMALISED) else _FIRST
    metrics = [name for name in named if "_stderr" not in name]
    metrics.sort(key=lambda name: order.index(name) if name in order else len(order))
    if not metrics:
        raise FasError(f"the task {task} gave no figure: {entry}")
    return {name: named[name] for name in metrics}, errors


def load_tasks(
    specs: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    include: Sequence[Path] = (),
    reading: Reading | None = None,
) -> list[HarnessTask]:
    """The tasks that ``specs`` name: names of lm-eval (or of YAML tasks in the folders ``include``), YAML files, or files of
    questions (`fas.tasks.choices`). Their data is loaded, nothing is computed; ``reading`` is told which files were read.

    Raises `ConfigError` for a name that does not exist or stands twice, `DataError` for data that cannot be had.
    """
    if lacking := next((folder for folder in include if not folder.is_dir()), None):
        raise ConfigError(f"include_path={str(lacking)!r} is no folder; give one with YAML tasks of lm-eval")
    reading = reading or Reading()
    reading.unit = "questions"
    with quietly():
        manager = _manager(specs, include)
        found = [task for spec in specs for task in _tasks_of(spec, manager, tokenizer, asked, reading)]
    names = [task.name for task in found]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two of the tasks are called {double}; rename one of the files, or ask for one of them")
    for task in found:
        _set_examples(task)
    return found


def _manager(specs: Sequence[str], include: Sequence[Path]) -> Any:
    from lm_eval.tasks import TaskManager

    paths: list[str | Path] = list(include)
    manager = TaskManager(include_path=paths, include_defaults=False)
    for spec in specs:
        if not _is_file(spec) and spec not in manager.task_index:
            _require_named(spec, manager.all_tasks)
    if all(_is_file(spec) or spec in manager.task_index for spec in specs):
        return manager
    return TaskManager(include_path=paths) if paths else _own_tasks()


def _require_named(spec: str, others: Sequence[str]) -> None:
    """Raise `ConfigError` where no file of lm-eval holds the name ``spec``: a third of a second, where its index takes ten."""
    import lm_eval.tasks

    files = Path(lm_eval.tasks.__file__).parent.rglob("*.y*ml")
    texts = [file.read_text(encoding="utf-8", errors="ignore") for file in files]
    if any(spec in text for text in texts):
        return
    names = {name.strip("'\"") for text in texts for name in _NAMED.findall(text)}
    raise _unknown(spec, sorted(names.union(others)))


def _unknown(spec: str, known: Sequence[str]) -> ConfigError:
    close = difflib.get_close_matches(spec, known, 3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return ConfigError(f"{spec!r} is no task of lm-eval, and no file of questions or YAML task{hint}")


@cache
def _own_tasks() -> Any:
    """The 14,000 tasks of lm-eval alone, which take ten seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _tasks_of(
    spec: str, manager: Any, tokenizer: PreTrainedTokenizerBase, asked: Asked, reading: Reading
) -> list[HarnessTask]:
    from lm_eval.api.task import ConfigurableTask

    if choices.is_questions(spec):
        task = ConfigurableTask(config=choices.settings_of(Path(spec), reading))
        return [HarnessTask(task.task_name, {"tasks": {task.task_name: task}}, tokenizer, asked)]
    if not _is_file(spec) and spec not in manager.task_index:
        raise _unknown(spec, manager.all_tasks)
    try:
        with quickly():
            loaded = manager.load([spec])
    except Exception as error:  # of lm-eval, the data library and the hub: the user needs one sentence
        sentence = why_not("its data", error, "data set")
        hint = "; without the hub, give files of questions (.jsonl)" if sentence or isinstance(error, OSError) else ""
        raise DataError(f"the task {spec} cannot be loaded: {sentence or _reason(error)}{hint}") from None
    group = loaded["groups"].get(spec)
    if group is not None and group.has_aggregation:
        return [HarnessTask(spec, loaded, tokenizer, asked)]
    return [HarnessTask(name, {"tasks": {name: task}}, tokenizer, asked) for name, task in loaded["tasks"].items()]


def _is_file(spec: str) -> bool:
    """Whether ``spec`` means a file; raises `DataError` if there is none."""
    if not choices.is_questions(spec) and not spec.endswith(_YAML):
        return False
    if kind_of(spec) is None:
        raise DataError(f"{spec} does not exist; give a file of questions (.json, .jsonl), a YAML task, or a name")
    return True


def _set_examples(task: HarnessTask) -> None:
    """As lm-eval's own command: a task that says 0 keeps it, any other takes what was asked for."""
    for loaded in task.loaded["tasks"].values():
        own, asked = loaded.get_config("num_fewshot"), task.asked.num_fewshot
        if own != 0 and (asked is not None or own is None):
            loaded.set_config(key="num_fewshot", value=asked or 0)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def quietly() -> Iterator[None]:
    """lm-eval prints, draws bars, warns of each long item, and starts a process a core; here it only computes."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            patch.dict(os.environ, DISABLE_MULTIPROC="1"),
        ):
            yield
    finally:
        logger.setLevel(level)
