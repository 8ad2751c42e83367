"""Results in words: what a row is called, how a figure is written. The table and the HTML report share them."""

from __future__ import annotations

from pathlib import Path

from fas.report.results import Results, Row

TRAINED_CAPTION = (
    "Control: the ANN fine-tuned on the same data and for as many steps as Stage 1 (or the ANN itself where that is "
    "better). QCFS model: the network after Stage 1, its activations quantized, no time yet. "
)
UNTRAINED_CAPTION = (
    "Nothing was trained, so a control is the ANN itself. QCFS model: the ANN, its activations quantized on fitted scales, no "
    "time yet. "
)
CAPTION = (
    "SNN: the same network, its neurons exchanging spikes over T timesteps. Spikes/neuron: non-zero spikes per neuron and "
    "token, summed over all T. Quality was measured in simulation."
)
ADAPTIVE_NOTE = (
    "Mean T: timesteps after which a sequence stopped; spikes of later ones do not count. In simulation all T are computed, "
    "so mean T is what hardware would take."
)
METHODS_NOTE = (
    "Latency: timesteps until the network has answered: T where all layers advance together, T for each layer in series where "
    "a layer fires only when it has seen its whole input. Methods without training start from the control, the others from the "
    "QCFS model; which, and what was assumed of them, stands in docs/methods.md. Energy: estimated by the ledger, of the whole "
    "network, against the ANN in fp32 (products only), the ANN in int8 (all operations) and the quantized ANN of the same bits "
    "(memory traffic too). Analog: the share of multiply-accumulates that stay, and how many exponentials, roots and divisions "
    "run for each of the ANN's. MiB: weights and what a forward holds at once, in simulation."
)
UNTRAINED_METHODS_NOTE = (
    "Papers of those that start from the QCFS model train it; here all ({names}) take it untrained. Every method is given the "
    "same prefix, rotation and means, also where its paper has none."
)
SHARE_NOTE = (
    "±: the standard error of an accuracy over the items. Differences are in points, 100 times those of the accuracies; one "
    "within the standard errors may be chance."
)
STORED_NOTE = "* measured when the model was converted, not in this run."

# metrics that are no shares of 1
_BY_RATIO = {
    "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "loss", "brier_score", "bleu", "chrf", "ter",
}  # fmt: skip
_TUNED = {"qcfs": "QCFS model (of the tuned weights)", "snn": "SNN (weights tuned in time)"}
# of `Results.extra`: what has a place of its own, or is for reading in JSON
_NO_FACTS = ("samples", "scenes", "layer_errors", "methods", "massive_activations")
_MODELS = {"ann": "ANN", "ann+prefix": "ANN with the prefix", "qcfs": "QCFS model", "snn": "SNN"}


def called(source: str) -> str:
    """A model or data set as one speaks of it: a hub name as it is, of a path on this machine the last two parts."""
    path = Path(source)
    return "/".join(path.parts[-2:]) if path.is_absolute() and len(path.parts) > 2 else source


def title(results: Results) -> str:
    """Model, data, and what all converted rows have in common."""
    coverages, levels = ({getattr(row, name) for row in results.rows} - {None} for name in ("coverage", "levels"))
    parts = [f"{called(results.model)} on {called(results.data)}"]
    parts += [f"coverage {coverages.pop()}"] if len(coverages) == 1 else []
    parts += [f"L = {levels.pop()}"] if len(levels) == 1 else []
    return ", ".join(parts)


def model_label(row: Row, results: Results) -> str:
    """What the row measures."""
    if row.name == "control":
        ann = next((r for r in results.rows if r.name == "ann" and r.task == row.task), None)
        # two models may well have one accuracy, but not one loss
        same = ann is not None and (ann.value, ann.metric, ann.loss) == (row.value, row.metric, row.loss)
        return "control (= ANN)" if same else "control (fine-tuned ANN)"
    return (_TUNED if row.tuned else _MODELS).get(row.name, row.name)


def coding_label(row: Row) -> str:
    """How values live in time; empty where no time is simulated."""
    if row.name != "snn" or row.schedule == "layerwise":
        return ""
    if row.coding == "rate":
        return "rate (step rows, the paper's)" if row.rows == "step" else "rate"
    several = f", {row.neurons_per_channel} neurons a channel" if (row.neurons_per_channel or 1) > 1 else ""
    return (row.coding or "").replace("_", "-") + several


def schedule_label(row: Row) -> str:
    """``layerwise``, or the weights of the timesteps of a sigma-delta row, e.g. ``4,2,2,1``; Stage 2 sets them by site."""
    if row.name != "snn":
        return ""
    if row.steps and row.schedule != "layerwise":
        return ",".join(map(str, row.steps)) + (", set by site" if row.stage2 else "")
    return row.schedule or ""


def energy_label(row: Row) -> str:
    """Strict fp32-proxy energy against the ANN's in fp32; empty where the ledger did not run."""
    if row.energy_strict_pj is None or not row.energy_ann_pj:
        return ""
    return f"×{row.energy_strict_pj / row.energy_ann_pj:.2f}"


def ledger_label(row: Row, column: str) -> str:
    """Strict energy in another column of the ledger, against what that column compares with."""
    found = (row.energies or {}).get(column)
    return "" if found is None else f"×{found:.2f}"


def stopping_label(row: Row) -> str:
    """What lets a sequence stop before T; empty where all T run."""
    if row.mean_timesteps is None:
        return ""
    sure = [] if row.confidence is None else [f"{row.confidence:g} confident"]
    return " or ".join(["settled"] * bool(row.settled) + sure)


def stage2_label(row: Row) -> str:
    """Whether the figure is from before or after Stage 2."""
    if row.name != "snn" or row.stage2 is None or row.schedule == "layerwise":  # its counts are the QCFS model's codes
        return ""
    return "after" if row.stage2 else "before"


def metric_title(results: Results) -> str:
    """The metric that all rows share, or ``value``."""
    metrics = {row.metric for row in results.rows if row.metric}
    return metrics.pop().replace("_", " ") if len(metrics) == 1 else "value"


def value_label(row: Row, results: Results) -> str:
    """The value, with its standard error where that is known, and its metric where the rows differ in that."""
    mixed = metric_title(results) == "value" and row.metric
    error = "" if row.stderr is None or row.value is None else f" ±{row.stderr:.3f}"
    return format_value(row.value) + error + (f" ({row.metric})" if mixed else "")


def format_value(value: float | None) -> str:
    """As many digits as tell something.

    >>> format_value(61.666), format_value(0.96832), format_value(12345.6)
    ('61.67', '0.9683', '12346')
    """
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"


def reference_row(results: Results, task: str | None = None) -> Row | None:
    """The control, or the ANN where no control was measured; what the ratios are taken against (at ``task``, if given)."""
    named = {row.name: row for row in reversed(results.rows) if row.value is not None}
    reference = named.get("control") or named.get("ann")
    if reference is None or task is None:
        return reference
    rows = (row for row in results.rows if row.name == reference.name and row.task == task and row.value is not None)
    return next(rows, None)


def original(results: Results) -> str:
    """What the ratios are against, as one speaks of it."""
    reference = reference_row(results)
    trained = reference is not None and reference.name == "control" and not untrained(results)
    return "its fine-tuned original" if trained else "the original"


def is_share(row: Row) -> bool:
    """Whether the value is a share of what could have been right (or a correlation), which is compared in points."""
    return bool(row.metrics) and (row.metric or "").split(",")[0] not in _BY_RATIO


def ratio(row: Row, results: Results) -> float | None:
    """The row's value over the reference's, where both measure the same."""
    reference = reference_row(results, row.task)
    if reference is None or reference.metric != row.metric or row.value is None or not reference.value:
        return None
    return row.value / reference.value


def ratio_label(row: Row, results: Results) -> str:
    """``×1.013``, or ``-0.4`` points of a metric that is a share; empty for the reference itself."""
    reference = reference_row(results, row.task)
    if reference is None or row is reference or reference.metric != row.metric:
        return ""
    if is_share(row) and row.value is not None and reference.value is not None:
        return f"{100 * (row.value - reference.value):+.1f}"
    found = ratio(row, results)
    return "" if found is None else f"×{found:.3f}"


def notes(results: Results) -> list[str]:
    """What a reader needs to know below the table."""
    adaptive = any(row.mean_timesteps is not None for row in results.rows)
    stored = any(row.stored for row in results.rows)
    shares = any(is_share(row) and row.stderr is not None for row in results.rows)
    compared = any(row.method is not None for row in results.rows)
    return [
        (UNTRAINED_CAPTION if untrained(results) else TRAINED_CAPTION) + CAPTION,
        *[METHODS_NOTE] * compared, *_untrained_notes(results),
        *_tuned_notes(results), *[SHARE_NOTE] * shares, *_item_notes(results), *[ADAPTIVE_NOTE] * adaptive,
        *[STORED_NOTE] * stored,
    ]  # fmt: skip


def _item_notes(results: Results) -> list[str]:
    """Items that were cut, by task, and rows that could not be measured."""
    cut = {row.task: (row.truncated, row.items) for row in results.rows if row.truncated}
    notes = [
        f"{task}: {truncated} of {items} items were longer than the context and were cut at their left."
        for task, (truncated, items) in cut.items()
    ]
    failed = [row for row in results.rows if row.error is not None and (row.task is not None or row.method is not None)]
    names = [
        f"{row.method}, T = {row.timesteps}" if row.method else f"{row.task}, {model_label(row, results)}"
        for row in failed
    ]
    return notes + [f"{name}: not measured, because {row.error}" for name, row in zip(names, failed, strict=True)]


def untrained(results: Results) -> bool:
    """Whether Stage 1 was left out, as far as the results say."""
    return results.extra.get("options", {}).get("stage1") == "none"


def _untrained_notes(results: Results) -> list[str]:
    """Of a comparison without training: which methods would have had it."""
    methods = results.extra.get("methods", {})
    names = [name for name, about in methods.items() if about["start"] == "qcfs"]
    return [UNTRAINED_METHODS_NOTE.format(names=", ".join(names))] if names and untrained(results) else []


def _tuned_notes(results: Results) -> list[str]:
    if not any(row.tuned for row in results.rows):
        return []
    steps = results.extra.get("tuning", {}).get("steps")
    more = f"{steps} more steps of training" if steps else "more training"
    return [
        f"Weights tuned in time: after Stage 2 the weights had {more}, through the simulated spiking network. The control had "
        "none of them, and the paper freezes the weights. The QCFS model of the tuned weights is what they give without time, "
        "not what Stage 2 calibrated to."
    ]


def describe_snn(row: Row) -> str:
    """A spiking row in a few words, e.g. ``sigma-delta, T = 4``."""
    stops = "" if row.mean_timesteps is None else f", stops when {stopping_label(row)}"
    tuned = ", weights tuned in time" if row.tuned else ""
    return f"{coding_label(row) or schedule_label(row)}, T = {row.timesteps}{tuned}{stops}"


def samples(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Prompts, each with pairs of model and what it wrote after the prompt (from ``extra["samples"]``)."""
    found = []
    for sample in results.extra.get("samples", []):
        prompt, written = sample["prompt"], {key: text for key, text in sample.items() if key != "prompt"}
        found.append((prompt, [(_MODELS.get(key, key), text.removeprefix(prompt)) for key, text in written.items()]))
    return found


def samples_as_text(results: Results) -> str:
    """The same as lines of text, one model below the other."""
    return "\n\n".join(f"{name}: {prompt}{text}" for prompt, texts in samples(results) for name, text in texts)


def provenance(results: Results) -> dict[str, str]:
    """Where the figures come from, by name: command, data, seed, versions, and what else was recorded."""
    tokens = sorted({row.tokens for row in results.rows if row.tokens})
    facts = {"command": results.command, "model": results.model, "data": results.data, "seed": str(results.seed)}
    facts |= {"evaluated on": " and ".join(f"{count:,} tokens" for count in tokens)} if tokens else {}
    for key, value in results.extra.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name}={entry}" for name, entry in value.items() if entry is not None)
        if key not in _NO_FACTS:
            facts[key.replace("_", " ")] = str(value)
    return facts | results.versions
