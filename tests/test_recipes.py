"""Recipes: every file is valid, can be planned without network, and runs on a tiny model of its architecture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import standins

from fas.cli import main
from fas.cli.convert import options_from
from fas.errors import ConfigError
from fas.pipeline.compare import CompareOptions
from fas.pipeline.convert import run_conversion
from fas.pipeline.dry_run import dry_run
from fas.pipeline.options import ConvertOptions
from fas.pipeline.recipes import read_recipe, recipe_folder, recipe_names, recipe_options

NAMES = recipe_names()
OF_GLUE = {"sst2", "mrpc", "stsb", "cola", "rte", "qnli", "qqp", "mnli", "wnli"}


def planned(name: str, **more: object) -> ConvertOptions:
    return recipe_options(read_recipe(name).options | {"out": Path(name)} | more)


def test_there_is_a_recipe_for_every_row() -> None:
    assert {f"bert-{task}" for task in OF_GLUE} | {f"opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b")} | {
        "gpt2-wikitext2", "gpt2-wikitext103", "gpt2-medium", "smollm2-135m",
        "llama-2-7b", "qwen2.5-0.5b", "qwen2.5-1.5b", "git-base-coco-captions",
        "blip-captioning-base", "llava-1.5-7b-vqa", "vit-base-cifar10", "clip-vit-b32-cifar10",
    } == set(NAMES)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_valid_and_says_what_it_is_for(name: str) -> None:
    recipe = read_recipe(name)
    options = recipe_options(recipe.options | {"out": Path("x")})
    assert options.configurations()
    about = recipe.about
    assert about is not None
    assert recipe.architecture["model_type"]
    assert recipe.examples is not None
    assert all(entry.source for entry in about.published)
    for machine in about.machines:
        dataclasses.replace(options, **machine.options)
        command = machine.command(name)
        assert f"--recipe {name} " in command
        assert command.startswith("torchrun") == (machine.processes > 1)


def test_models_of_peers_are_prepared_for_a_comparison() -> None:
    prepared = [name for name in NAMES if read_recipe(name).compare is not None]
    assert {"gpt2-medium", "llama-2-7b", "qwen2.5-0.5b", "smollm2-135m"} <= set(prepared)
    for name in prepared:
        recipe = read_recipe(name)
        assert recipe.compare is not None
        compared = CompareOptions(planned(name), recipe.compare.methods, recipe.compare.timesteps)
        assert {"fas-population", "fas-sigma-delta"} < {method.name for method in compared.chosen}
        assert (compared.base.stage1, compared.base.activation) == ("none", "keep")


def same_plan(name: str) -> str:
    """Recipes whose data alone differ cost the same, so one of them is planned: the tasks of GLUE, and both texts of GPT-2."""
    recipe = read_recipe(name)
    named = ("task", "data", "eval_data", "stage1_steps")
    options = {key: value for key, value in recipe.options.items() if key not in named}
    return json.dumps([recipe.architecture, options], sort_keys=True, default=str)


LARGEST = {same_plan(name): name for name in sorted(NAMES, key=lambda n: read_recipe(n).examples.training)}
SLOWER = ("git-base-coco-captions", "gpt2-medium", "llava-1.5-7b-vqa", "opt-6.7b", "qwen2.5-1.5b")
"""Planned like BLIP, GPT-2, OPT-2.7B and Qwen2.5-0.5B, which `make test` plans; all of them in `make test-all`."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOWER else n for n in sorted(LARGEST.values())]
)
def test_recipe_is_planned_without_network_and_fits_where_it_says(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(name)
    assert recipe.about is not None
    machine = recipe.about.machines[0]
    plan = dry_run(planned(name, **machine.options), recipe)
    assert plan.configuration.startswith("the recipe")
    assert plan.peak <= machine.gib * 2**30
    assert list(tmp_path.iterdir()) == []
    assert (f"fas compare --recipe {name} --out {name}-compared" in plan.commands.values()) == (
        recipe.compare is not None
    )


def same_run(name: str) -> str:
    """Recipes that differ in names and sizes only share one run on a stand-in."""
    recipe = read_recipe(name)
    return json.dumps([standins.architecture_of(recipe), standins.options_of(recipe)], sort_keys=True, default=str)


RUNS = {same_run(name): name for name in reversed(NAMES)}


@pytest.mark.parametrize("name", sorted(RUNS.values()))
def test_recipe_runs_on_a_stand_in(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    place = {
        "model": standins.save_model(recipe, tmp_path / "model"),
        "data": standins.save_data(recipe, tmp_path / "data"),
        "out": tmp_path / "out",
    }
    options = recipe_options(standins.options_of(recipe) | place)
    results = run_conversion(options)
    rows = [row for row in results.rows if row.name == "snn" and row.schedule == "synchronous"]
    assert [(row.coding, row.timesteps) for row in rows] == [
        (target.coding, target.timesteps) for target in options.configurations()
    ]
    levels = options.configurations()[0].levels
    assert all(row.coverage == recipe.options["coverage"] and row.levels == levels for row in rows)
    assert all(row.spikes_per_neuron and row.spikes_per_neuron > 0 for row in rows)
    assert (tmp_path / "out" / "results.json").exists()


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


ABOUT = "about: {title: t, reproduces: r, published: [{of: o, metric: m, figure: null, source: s}], machines: []%s}\n"


def test_a_recipe_extends_another_and_flags_overrule_it(tmp_path: Path) -> None:
    write(
        tmp_path / "below.yaml",
        "model: a\ndata: b\nlevels: 4\ntimesteps: [2, 4]\ncoding: rate\narchitecture: {model_type: gpt2, n_layer: 3}\n"
        + ABOUT % "",
    )
    above = write(
        tmp_path / "above.yaml",
        "extends: below\ntimesteps: 8\narchitecture: {n_layer: 5}\nabout: {title: other}\n",
    )
    recipe = read_recipe(above)
    assert recipe.options == {"model": "a", "data": "b", "levels": 4, "timesteps": (8,), "codings": ("rate",)}
    assert recipe.architecture == {"model_type": "gpt2", "n_layer": 5}
    assert recipe.about is not None
    assert (recipe.about.title, recipe.about.reproduces) == ("other", "r")
    options = options_from({"levels": 3, "out": tmp_path, "coverage": None}, recipe)
    assert (options.levels, options.timesteps, options.model, options.coverage) == (3, (8,), "a", "linear")


def test_a_file_extends_a_recipe_of_fas(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path / "mine.yaml", "extends: gpt2-wikitext2\nlevels: 4\n"))
    assert recipe.options == read_recipe("gpt2-wikitext2").options | {"levels": 4}


def test_other_data_comes_without_the_evaluation_text_of_the_recipe(tmp_path: Path) -> None:
    recipe = read_recipe("gpt2-wikitext2")
    assert options_from({"out": tmp_path}, recipe).eval_data == "Salesforce/wikitext:wikitext-2-raw-v1@test"
    assert options_from({"out": tmp_path, "data": "mine.txt"}, recipe).eval_data is None
    assert options_from({"out": tmp_path, "data": "mine.txt", "eval_data": "e"}, recipe).eval_data == "e"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red\n", "unknown option 'colour'"),
        (ABOUT % ", colour: red", "about.colour"),
        (ABOUT % ", zero_shot: 5", "about.zero_shot"),
        ("about: {title: t}\n", "about.reproduces"),
        (ABOUT.replace("machines: []", "machines: [{name: m, gib: 1, options: {colour: 1}}]") % "", "unknown option 'colour'"),
        (ABOUT.replace("source: s", "sauce: s") % "", "about.published.0"),
        ("examples: {training: 5}\n", "examples.evaluation"),
        ("compare: {methods: [qcfs], levels: 4}\n", "compare.levels"),
        ("extends: this\n", "extends this"),
        ("extends: nothing\n", "nothing is neither a file nor a recipe"),
        ("- a\n", "lines of the form"),
        ("a: [\n", "not YAML"),
    ],
)  # fmt: skip
def test_bad_recipes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read_recipe(write(tmp_path / "this.yaml", text))


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="those are bert-cola"):
        read_recipe("gpt5")
    with pytest.raises(ConfigError, match="neither"):
        read_recipe("_gpt2/../gpt2-wikitext2")


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *NAMES]
    assert "18.01" in next(line for line in lines if line.startswith("gpt2-wikitext2"))
    assert main(["recipes", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)["recipes"]] == NAMES


def test_the_page_lists_the_recipes() -> None:
    page = (recipe_folder().parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    from fas.pipeline.recipes import table

    assert table() in page
