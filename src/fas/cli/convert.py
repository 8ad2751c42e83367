"""``fas convert``: both stages, from a model and text to a folder with the spiking model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fas import world
from fas.cli.options import AsJson, LabelColumn, PairColumn, Quiet, TextColumn, numbers_in, words_in
from fas.errors import ConfigError
from fas.pipeline.options import ConvertOptions

if TYPE_CHECKING:
    from fas.pipeline.recipes import Recipe

NAME = "convert"
EXAMPLE = "fas convert --model openai-community/gpt2 --data notes.txt --out gpt2-snn --timesteps 4"

_STAGE1 = "Stage 1 (fine-tuning)"
_STAGE2 = "Stage 2 (calibration)"
_SNN = "The spiking model"


_DEFAULTS = {field.name: field.default for field in fields(ConvertOptions)}


def _flag(name: str, help: str, panel: str | None = None, *spelling: str) -> Any:
    """The option for one field of `ConvertOptions`, which alone knows the default: None means that it was not given."""
    default = _DEFAULTS.get(name)
    if isinstance(default, tuple):
        default = ",".join(map(str, default)) or None
    shown = "" if default is None or default is MISSING or isinstance(default, bool) else f" (default {default})"
    return typer.Option(*spelling, help=help.removesuffix(".") + shown + ".", rich_help_panel=panel, show_default=False)


_Coverage = Annotated[str | None, _flag("coverage", "What becomes spikes: ffn, linear, attention or full.", _SNN)]
_NeuronsPerChannel = Annotated[
    int | None, _flag("neurons_per_channel", "sigma_delta: neurons that encode a channel together.", _SNN)
]
_CalibrationSequences = Annotated[int | None, _flag("calibration_sequences", "Sequences; else by task.", _STAGE2)]
_Task = Annotated[str | None, _flag("task", "language-modeling, sst2 … (GLUE), text-classification, vqa, captioning …")]
_Template = Annotated[str | None, _flag("template", "Zero-shot classes of images: the text of a class.")]
_AbsorbBias = Annotated[
    bool | None, _flag("absorb_bias", "Mean errors go into the biases behind (beyond the paper).", _STAGE2)
]
_Rotation = Annotated[
    str | None, _flag("rotation", "hadamard: products of gated FFNs; heads: attention, too; or none.", _SNN)
]
_Center = Annotated[
    bool | None,
    _flag("center", "Inputs spike as distances from their means; else where massive.", _SNN, "--center/--no-center"),
]
_Prefix = Annotated[str | None, _flag("prefix", "Tokens in front of every text: auto, none, or ids: 260,1.", _SNN)]
_Scales = Annotated[str | None, _flag("scales", "One threshold a channel, or a tensor (for comparison).", _SNN)]
_Activation = Annotated[
    str | None, _flag("activation", "Pointwise activations: replace them by units (the paper), or keep.", _SNN)
]
_Targets = Annotated[
    list[str] | None, _flag("targets", "Only these sites spike: names as fas inspect shows them, or re:PATTERN.", _SNN)
]
_Parts = Annotated[
    list[str] | None, _flag("parts", "Of a vision-language model, what spikes: vision,projector,text.", _SNN)
]
_DATA = "Training text, labelled texts, or images with texts or classes: files, a folder, a hub data set, or builtin."
_Stage1Sequences = Annotated[
    int | None, _flag("stage1_sequences", "--stage1 blocks: sequences, whose states lie on disk.", _STAGE1)
]
_Stage1FinetuneSteps = Annotated[
    int | None, _flag("stage1_finetune_steps", "--stage1 blocks: steps of the whole model behind.", _STAGE1)
]
_FromDisk = Annotated[
    bool | None, _flag("from_disk", "Hold one block's weights at a time; measures nothing.", None, "--from-disk")
]
_LoraRank = Annotated[int | None, _flag("lora_rank", "--stage1 lora: rank of the adapters.", _STAGE1)]
_LoraAlpha = Annotated[float | None, _flag("lora_alpha", "Their product is times alpha / rank.", _STAGE1)]
_Fsdp = Annotated[
    bool | None, _flag("fsdp", "Under torchrun: optimizer states are shared among the GPUs.", _STAGE1, "--fsdp")
]
_Distill = Annotated[
    float | None, _flag("distill", "Weight of distillation from the ANN, 0–1; else by the control.", _STAGE1)
]
_DistillStates = Annotated[
    float | None, _flag("distill_states", "Weight of the blocks' distance to the ANN's (beyond the paper).", _STAGE1)
]
_SpikesPerNeuron = Annotated[
    float | None, _flag("spikes_per_neuron", "Budget of spikes a neuron over all T, trained for.", _STAGE1)
]
_SpikePrice = Annotated[
    float | None, _flag("spike_price", "Relative error worth one spike a neuron; else by the budget.", _STAGE2)
]
_BeforeStage2 = Annotated[
    bool | None, _flag("before_stage2", "Also measure the SNN before Stage 2.", _STAGE2, "--before-stage2")
]
_Pareto = Annotated[
    bool, typer.Option("--pareto", help="Convert under several spike budgets, each into a folder of --out.")
]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only print the plan: stages, sites, memory, time, files. Loads no weights.")
]
_Budgets = Annotated[
    str | None, typer.Option(help="--pareto: budgets, none,1.5,1.0 …", show_default="none,1.5,1,0.7,0.5")
]


def command(
    model: Annotated[str | None, _flag("model", "Hub id, local folder, or builtin.")] = None,
    data: Annotated[str | None, _flag("data", _DATA)] = None,
    out: Annotated[Path | None, _flag("out", "Folder to write; an interrupted conversion goes on.")] = None,
    eval_data: Annotated[str | None, _flag("eval_data", "Evaluation text; else its test split, or last 10 %.")] = None,
    task: _Task = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    template: _Template = None,
    recipe: Annotated[str | None, _flag("recipe", "By name (fas recipes), or a YAML file; flags overrule it.")] = None,
    coverage: _Coverage = None,
    levels: Annotated[int | None, _flag("levels", "L: grid points on each side of zero.", _SNN)] = None,
    coding: Annotated[list[str] | None, _flag("codings", "sigma_delta, rate, or sigma_delta,rate.", _SNN)] = None,
    timesteps: Annotated[list[str] | None, _flag("timesteps", "T, one or several: 2,4,8.", _SNN)] = None,
    neurons_per_channel: _NeuronsPerChannel = None,
    steps: Annotated[str | None, _flag("steps", "sigma_delta: worth of a spike by timestep: 4,2,2,1.", _SNN)] = None,
    rows: Annotated[str | None, _flag("rows", "rate: mean, or step, the paper's way.", _SNN)] = None,
    rotation: _Rotation = None,
    center: _Center = None,
    prefix: _Prefix = None,
    scales: _Scales = None,
    activation: _Activation = None,
    parts: _Parts = None,
    targets: _Targets = None,
    ignore: Annotated[list[str] | None, _flag("ignore", "These sites stay analog; named like targets.", _SNN)] = None,
    stage1: Annotated[str | None, _flag("stage1", "full, lora, blocks (one at a time), or none.", _STAGE1)] = None,
    stage1_steps: Annotated[int | None, _flag("stage1_steps", "Steps (of each block); else by size.", _STAGE1)] = None,
    stage1_sequences: _Stage1Sequences = None,
    stage1_finetune_steps: _Stage1FinetuneSteps = None,
    mlm_data: Annotated[str | None, _flag("mlm_data", "Labelled texts: masked text to begin with.", _STAGE1)] = None,
    mlm_steps: Annotated[int | None, _flag("mlm_steps", "Optimizer steps on that text.", _STAGE1)] = None,
    batch_size: Annotated[int | None, _flag("batch_size", "Sequences in a batch; else by task.", _STAGE1)] = None,
    length: Annotated[int | None, _flag("length", "Tokens in a sequence; else min(context, 256).", _STAGE1)] = None,
    lr: Annotated[float | None, _flag("lr", "Learning rate of the weights.", _STAGE1)] = None,
    scale_lr: Annotated[float | None, _flag("scale_lr", "Learning rate of the neurons' scales.", _STAGE1)] = None,
    lora_rank: _LoraRank = None,
    lora_alpha: _LoraAlpha = None,
    fsdp: _Fsdp = None,
    distill: _Distill = None,
    distill_states: _DistillStates = None,
    spikes_per_neuron: _SpikesPerNeuron = None,
    stage2: Annotated[bool | None, _flag("stage2", "Calibrate the neurons.", _STAGE2, "--stage2/--no-stage2")] = None,
    spike_price: _SpikePrice = None,
    calibration_sequences: _CalibrationSequences = None,
    fit_steps: Annotated[int | None, _flag("fit_steps", "Gradient steps for each site, no layer run.", _STAGE2)] = None,
    absorb_bias: _AbsorbBias = None,
    align_steps: Annotated[int | None, _flag("align_steps", "Gradient steps for each layer.", _STAGE2)] = None,
    global_steps: Annotated[int | None, _flag("global_steps", "Gradient steps for the whole network.", _STAGE2)] = None,
    before_stage2: _BeforeStage2 = None,
    eval_sequences: Annotated[int | None, _flag("eval_sequences", "At most so many sequences to evaluate on.")] = None,
    seed: Annotated[int | None, _flag("seed", "Same seed, same result")] = None,
    device: Annotated[str | None, _flag("device", "auto, cpu, cuda or cuda:1.")] = None,
    dtype: Annotated[str | None, _flag("dtype", "float32, bfloat16 or float16; neurons use fp32.")] = None,
    from_disk: _FromDisk = None,
    dry_run: _DryRun = False,
    pareto: _Pareto = False,
    budgets: _Budgets = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Convert a language, vision-language or classifying model: fine-tune its quantized form, make it spike, calibrate that.

    Writes the spiking model, the fine-tuned original (the control) and results.json to --out, and prints their quality
    side by side. Killed at any moment and started again with the same options, it goes on from the last finished stage.
    """
    flags = dict(locals())  # all of them, by name; the names are those of ConvertOptions
    from fas.cli.session import print_json, session

    flags |= lists_of(flags)
    with session(quiet, parallel=True) as progress:
        if dry_run:
            return _show_plan(flags, recipe, as_json)
        options = options_from(flags, _recipe(recipe))
        results = _run(options, pareto, budgets, progress)
        progress.note(f"written: {options.out}")
    if world.is_first():
        print_json(results.to_dict()) if as_json else _print(results, options)


def _print(results: Any, options: ConvertOptions) -> None:
    from fas.report.table import print_results

    if options.from_disk:
        print(f"nothing is measured from disk; fas eval {options.out} does it, where the model fits into memory")
    else:
        print_results(results)


def _run(options: ConvertOptions, pareto: bool, budgets: str | None, progress: Any) -> Any:
    from fas.pipeline.convert import run_conversion
    from fas.pipeline.from_disk import convert_from_disk
    from fas.pipeline.pareto import BUDGETS, run_pareto

    check_sweep(options, pareto, budgets)
    if options.from_disk:
        return convert_from_disk(options, progress)
    if pareto:
        return run_pareto(options, budgets_in(budgets) or BUDGETS, progress)
    return run_conversion(options, progress)


def lists_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those flags that hold several values, by the names and in the types of `ConvertOptions`."""
    steps = flags["steps"]
    return {
        "codings": words_in(flags["coding"]),
        "parts": words_in(flags["parts"]),
        "timesteps": numbers_in(flags["timesteps"], "--timesteps"),
        "steps": numbers_in([steps] if steps else None, "--steps"),
        "prefix": prefix_in(flags["prefix"]),
    } | {name: tuple(flags[name]) for name in ("targets", "ignore") if flags[name]}


def prefix_in(text: str | None) -> Any:
    """A prefix as `ConvertOptions` has it; raises `ConfigError` for what is neither auto, none nor a list of token ids.

    >>> prefix_in("auto"), prefix_in("none"), prefix_in("260,1")
    ('auto', (), (260, 1))
    """
    if text in (None, "auto"):
        return text
    return () if text == "none" else numbers_in([text], "--prefix")


def check_sweep(options: ConvertOptions, pareto: bool, budgets: str | None) -> None:
    """Raise `ConfigError` for what does not go together with ``pareto``, or without."""
    if budgets and not pareto:
        raise ConfigError("--budgets belong to --pareto; a single budget is --spikes-per-neuron")
    if pareto and world.launched()[1] > 1:
        raise ConfigError("--pareto runs in one process; start it without torchrun, or one budget after the other")
    if pareto and (options.from_disk or options.stage1 == "blocks"):
        raise ConfigError("--pareto trains the whole model under each budget; choose --stage1 full or lora")
    if pareto and options.spikes_per_neuron is not None:
        raise ConfigError("--pareto takes its budgets from --budgets; leave --spikes-per-neuron out")


def _recipe(name: str | None) -> Recipe | None:
    from fas.pipeline.recipes import read_recipe

    return None if name is None else read_recipe(name)


def _show_plan(flags: dict[str, Any], recipe: str | None, as_json: bool) -> None:
    from fas.cli.session import print_json
    from fas.pipeline.dry_run import dry_run
    from fas.report.plan_text import as_text

    found = _recipe(recipe)
    if flags["from_disk"]:
        raise ConfigError("--dry-run plans conversions in memory; --from-disk says what it takes when it starts")
    plan = dry_run(options_from(flags | {"out": flags["out"] or Path(found.name if found else "OUT")}, found), found)
    print_json(plan.to_dict()) if as_json else print(as_text(plan))


def budgets_in(text: str | None) -> tuple[float | None, ...] | None:
    """Budgets of a sweep, ``none`` among them; raises `ConfigError` for what is no positive number.

    >>> budgets_in("none,1.5"), budgets_in(None)
    ((None, 1.5), None)
    """
    if text is None:
        return None
    words = text.replace(",", " ").split()
    try:
        found = tuple(None if word == "none" else float(word) for word in words)
    except ValueError:
        found = (0.0,)
    if any(budget is not None and not budget > 0 for budget in found):
        raise ConfigError(f"--budgets {text} is not a list of spikes per neuron such as none,1.5,0.5")
    return found


def options_from(flags: dict[str, Any], recipe: Recipe | None = None) -> ConvertOptions:
    """The options of a conversion: the recipe's, overruled by the flags that were given (those that are not None)."""
    from fas.pipeline.recipes import recipe_options

    known = [field.name for field in fields(ConvertOptions)]
    values = dict(recipe.options) if recipe is not None else {}
    if flags.get("data") is not None:
        values.pop("eval_data", None)  # which belongs to the recipe's data
    return recipe_options(values | {name: flags[name] for name in known if flags.get(name) is not None})
