"""What a conversion does about massive activations: found once on calibration data, kept as a stage, said in the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from fas.config import USUAL_LEVELS, SpikingConfig
from fas.conversion.install import decoders
from fas.conversion.massive import MassiveReport
from fas.conversion.prefix_search import PrefixSearch, find_prefix, give_prefix
from fas.models import planned
from fas.pipeline.options import FINE_LEVELS, ConvertOptions
from fas.pipeline.run import Run

STAGE = "outliers"
SHOWN = 8
"""Sites that a report lists."""


def with_outliers_treated(run: Run, ann: PreTrainedModel) -> Run:
    """``run`` with the options that were left open: prefix, rotation, means, neurons a channel and levels.

    Where nothing is massive they are what small models need; else what deep pre-trained decoders do (docs/real-models.md).
    """
    options = run.options
    config = options.configurations()[0]
    plan = planned(ann, config)
    able = decoders(plan)
    if not able:
        given = () if options.prefix == "auto" else options.prefix  # which preparing refuses in one sentence
        return replace(run, options=settled(options, False, given))
    (segment,) = able
    if not run.workspace.has(STAGE):
        inside = [place for some, places in plan if some is segment for place in places]
        found = find_prefix(ann, segment, inside, run.calibration_batches(run.at_once), config, run.progress)
        run.workspace.store_json(STAGE, described(found, run.source.tokenizer) | {"rounding_error": found.noise})
    found = run.workspace.read_json(STAGE)
    tokens = tuple(found["prefix"]) if options.prefix == "auto" else options.prefix
    return replace(run, options=settled(options, found["massive"], tokens))


def described(found: PrefixSearch, tokenizer: Any) -> dict[str, Any]:
    """A search for a prefix as plain values, for JSON."""
    return {
        "massive": found.before.is_massive,
        "prefix": list(found.tokens),
        "text": [text_of(tokenizer, token) for token in found.tokens],
        "before": listed(found.before, tokenizer),
        "after": listed(found.after, tokenizer),
        "ann_loss": [found.before.loss, found.after.loss],
    }


def settled(options: ConvertOptions, massive: bool, prefix: tuple[int, ...]) -> ConvertOptions:
    """``options`` without anything left open: of a model that has ``massive`` activations, and has got ``prefix``."""
    neurons = options.neurons_per_channel or (2 if massive and "sigma_delta" in options.codings else 1)
    return replace(
        options,
        prefix=prefix,
        rotation=options.rotation or ("heads" if massive else "hadamard"),
        center=massive if options.center is None else options.center,
        neurons_per_channel=neurons,
        levels=(FINE_LEVELS if massive and neurons > 1 else USUAL_LEVELS) if options.levels is None else options.levels,
    )


def outliers_of(run: Run) -> dict[str, Any] | None:
    """What was found, for the results; None where nothing is massive."""
    found = run.workspace.read_json(STAGE) if run.workspace.has(STAGE) else None
    return found if found and found["massive"] else None


def prefixed_ann(run: Run) -> PreTrainedModel:
    """The original model with the prefix of the conversion."""
    return with_prefix(run.source.fresh(), run.options.configurations()[0])


def with_prefix(ann: PreTrainedModel, config: SpikingConfig) -> PreTrainedModel:
    """``ann`` itself, with the prefix of ``config`` in front of every sequence, its keys and values computed by ``ann``."""
    (segment,) = decoders(planned(ann, config))
    give_prefix(ann, segment, config.prefix)  # type: ignore[arg-type]
    return ann


def listed(report: MassiveReport, tokenizer: Any) -> list[dict[str, Any]]:
    """The sites with the largest ratios, for JSON."""
    return [
        {
            "site": site.name,
            "largest": round(site.largest, 3),
            "median": round(site.median, 3),
            "ratio": round(site.ratio, 1),
            "token": text_of(tokenizer, site.token),
            "first": site.first,
        }
        for site in report.most(SHOWN)
    ]


def text_of(tokenizer: Any, token: int) -> str:
    """A token as text; its number where there is no tokenizer of words."""
    decode = getattr(tokenizer, "decode", None)
    return str(decode([token])) if decode is not None else str(token)


def table_of(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of `listed` as cells of a table."""
    head = ("site", "largest", "median token", "times", "token")
    body = [
        (
            row["site"], f"{row['largest']:g}", f"{row['median']:g}", f"{row['ratio']:.0f}",
            repr(row["token"]) + (" (first)" if row["first"] else ""),
        )
        for row in rows
    ]  # fmt: skip
    return [head, *body]
