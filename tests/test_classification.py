"""``fas convert`` and ``fas eval`` of classifiers: labelled texts as examples, both stages, and every way to say no."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import folders
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fas.cli import main
from fas.conversion import prepare
from fas.errors import CheckpointError, ConfigError, DataError, FasError
from fas.pipeline import stages
from fas.pipeline.asked import as_converted, named
from fas.pipeline.convert import run_conversion
from fas.pipeline.evaluate import evaluate_folder
from fas.pipeline.load import load_ann, load_spiking
from fas.pipeline.options import ConvertOptions
from fas.pipeline.prepared import prepared
from fas.pipeline.workspace import Workspace
from fas.progress import Silent
from fas.report.results import Results
from fas.report.table import plain_table
from fas.runtime.control import sites_of
from fas.runtime.spikes import counting
from fas.tasks.glue import GLUE, OWN
from fas.tasks.labelled import load_labelled

SMALL = {
    "levels": 4, "timesteps": (4,), "stage1_steps": 4, "batch_size": 8, "calibration_sequences": 24, "fit_steps": 2, "lr": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("classification")
    folders.save_encoder(root / "encoder")
    folders.save_labelled(root / "rows.tsv", 400)
    folders.save_labelled(root / "pairs.tsv", pairs=True)
    folders.save_text(root / "text.txt")
    return root


def options(place: Path, out: str, **more) -> ConvertOptions:
    settings = SMALL | {"task": "sst2", "data": str(place / "rows.tsv"), "model": str(place / "encoder")} | more
    return ConvertOptions(out=place / out, **settings)


@pytest.fixture(scope="module")
def learnt(place):
    """Long enough to learn which kind of words a text has."""
    asked = options(place, "learnt", stage1_steps=100, lr=3e-3, before_stage2=True, coverage="linear")
    return asked, run_conversion(asked)


def test_padding_has_no_spikes_and_no_neurons(place, learnt) -> None:
    """Spikes of a padded batch are those of its texts, one at a time."""
    asked, _ = learnt
    model, tokenizer = load_spiking(str(asked.out), any_task=True)
    texts = ["w1 w2", "w50 w51 w52 w53 w54", "w3"]
    with counting(model) as together, torch.no_grad():
        model(**tokenizer(texts, padding=True, return_tensors="pt"))
    with counting(model) as apart, torch.no_grad():
        for text in texts:
            model(**tokenizer(text, return_tensors="pt"))
    for name, count in together.sites.items():
        assert count.neurons == apart.sites[name].neurons, name
        assert count.by_timestep.sum() == pytest.approx(int(apart.sites[name].by_timestep.sum()), rel=0.02), name


# the whole way


def test_a_new_head_learns_and_keeps_what_it_learnt_as_spikes(learnt) -> None:
    _, results = learnt
    kinds = [(row.name, row.schedule, row.stage2) for row in results.rows]
    assert kinds == [
        ("control", None, None), ("qcfs", None, None), ("snn", "layerwise", False), ("snn", "synchronous", True),
        ("snn", "synchronous", False),
    ]  # fmt: skip
    control, qcfs, layerwise, snn, _ = results.rows
    assert all(row.metric == "accuracy" and row.value == row.metrics["accuracy"] for row in results.rows)
    assert all(row.perplexity is None for row in results.rows)
    assert control.value > 0.9
    assert qcfs.value == layerwise.value > 0.9
    assert snn.value > 0.85
    assert 0 < snn.spikes_per_neuron < 4
    assert results.extra["control"]["chosen"] == "fine-tuned"
    assert results.extra["evaluation"]["sequences"] == 40
    table = plain_table(results)
    assert "accuracy" in table
    assert f"{100 * (snn.value - control.value):+.1f}" in table


def test_the_folder_loads_as_transformers_loads_a_classifier(learnt) -> None:
    asked, _ = learnt
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(asked.out),
        AutoTokenizer.from_pretrained(asked.out),
    )
    again, _ = load_spiking(str(asked.out), any_task=True)
    batch = tokenizer(["w1 w2 w3", "w50 w51"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch).logits)
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_fas_eval_measures_the_same_again(learnt, capsys) -> None:
    asked, results = learnt
    main(["eval", str(asked.out), "--layerwise", "--json", "--quiet"])
    again = json.loads(capsys.readouterr().out)
    before = {(row.name, row.schedule, row.stage2): row.value for row in results.rows}
    assert [row["name"] for row in again["rows"]] == ["control", "qcfs", "snn", "snn"]
    for row in again["rows"]:
        assert row["value"] == before[row["name"], row.get("schedule"), row.get("stage2")]


def test_fas_eval_on_other_data_with_its_own_columns(place, learnt) -> None:
    asked, _ = learnt
    rows = (place / "rows.tsv").read_text().splitlines()[1:]
    other = place / "other.csv"
    other.write_text("kind,words\n" + "".join(f"{label},{text}\n" for text, label in (row.split("\t") for row in rows)))
    found = evaluate_folder(asked.out, str(other), eval_data=str(other), columns=("words", None, "kind"))
    assert {row.name for row in found.rows} == {"control", "qcfs", "snn"}
    assert found.rows[0].tokens == 400
    assert found.rows[0].value > 0.9


def test_other_data_is_taken_whole_with_the_task_of_the_conversion() -> None:
    then = {
        "data": "a",
        "eval_data": "b",
        "length": 9,
        "eval_sequences": 3,
        "task": "rte",
        "text_column": None,
        "lr": 1.0,
    }
    stored = Results("m", "a", 0, extra={"options": then})
    same = as_converted("folder", stored, {"data": None, "length": 7})
    assert (same.data, same.eval_data, same.length, same.eval_sequences, same.task) == ("a", "b", 7, 3, "rte")
    other = as_converted("folder", stored, {"data": "c"} | named(("x", None, "y")))
    assert (other.data, other.eval_data, other.length, other.eval_sequences, other.task) == (
        "c",
        None,
        None,
        None,
        "rte",
    )
    assert (other.text_column, other.pair_column, other.label_column) == ("x", None, "y")
    with pytest.raises(ConfigError, match="--data"):
        as_converted("folder", None, {"data": None})


def test_classes_are_numbered_as_the_models_head_has_them(place) -> None:
    """Sorted they would be a, b; the head that comes with the model has them the other way round."""
    model = tiny.ann("bert_sequence", num_labels=2, id2label={0: "b", 1: "a"}, label2id={"b": 0, "a": 1})
    model.save_pretrained(place / "turned")
    AutoTokenizer.from_pretrained(place / "encoder").save_pretrained(place / "turned")
    file = place / "named.tsv"
    file.write_text("text\tlabel\n" + "".join(f"w{i % 50} w{i // 50}\t{'ab'[i % 2]}\n" for i in range(60)))
    asked = options(place, "n", model=str(place / "turned"), task="text-classification", data=str(file))
    training = prepared(asked).source.training
    words = {
        tuple(AutoTokenizer.from_pretrained(place / "turned")(f"w{i % 50} w{i // 50}")["input_ids"]): i
        for i in range(60)
    }
    assert all(example["labels"] == 1 - words[tuple(example["input_ids"])] % 2 for example in training.encoded)


@pytest.mark.parametrize("own", [("NOT_ENTAILMENT", "ENTAILMENT"), ("LABEL_0", "LABEL_1")])
def test_numbers_of_the_data_find_the_class_of_a_head_in_another_order(place, own) -> None:
    """RTE's 0 is entailment, which a head may have second, in capitals; one without names has the data's order."""
    folder = place / own[0].lower()
    names = {"id2label": dict(enumerate(own)), "label2id": {name: i for i, name in enumerate(own)}}
    tiny.ann("bert_sequence", num_labels=2, **names).save_pretrained(folder)
    AutoTokenizer.from_pretrained(place / "encoder").save_pretrained(folder)
    turned = own[0] != "LABEL_0"
    for form in ("number", "name"):
        file = place / f"{form}.tsv"
        labels = (0, 1) if form == "number" else ("entailment", "not_entailment")
        lines = [f"w{i % 50}\tw{i // 50}\t{labels[i % 2]}" for i in range(60)]
        file.write_text("\n".join(["sentence1\tsentence2\tlabel", *lines]))
        asked = options(place, f"r-{form}-{turned}", model=str(folder), task="rte", data=str(file), stage1="none")
        source = prepared(asked).source
        tokenizer = source.tokenizer
        wanted = {tuple(tokenizer(f"w{i % 50}", f"w{i // 50}")["input_ids"]): i % 2 for i in range(60)}
        for example in source.training.encoded:
            label = wanted[tuple(example["input_ids"])]
            assert example["labels"] == (1 - label if turned else label)
        results = run_conversion(asked)
        again = evaluate_folder(asked.out)  # the saved head knows the names
        assert [row.value for row in again.rows if row.name == "qcfs"] == [results.rows[2].value]


def test_a_decoder_learns_a_class_at_the_end_of_its_text(place) -> None:
    folders.save_ann(place / "decoder")
    results = run_conversion(options(place, "decoder-snn", model=str(place / "decoder"), stage1_steps=60, lr=3e-3))
    assert results.rows[0].value > 0.8
    assert type(load_spiking(str(place / "decoder-snn"), any_task=True)[0]).__name__ == "GPT2ForSequenceClassification"


def test_diagnosis_of_a_classifier(learnt) -> None:
    asked, _ = learnt
    found = evaluate_folder(asked.out, diagnosed=8)
    (diagnosis,) = found.extra["diagnosis"].values()
    sites = {site["name"] for layer in diagnosis["layers"] for site in layer["sites"]}
    assert sites == set(sites_of(load_spiking(str(asked.out), any_task=True)[0]))


@pytest.mark.parametrize("from_disk", [False, True])
def test_another_time_is_calibrated_on_the_same_training_texts(place, learnt, from_disk, capsys) -> None:
    asked, _ = learnt
    out = place / f"again-{from_disk}"
    flags = ["--from-disk"] if from_disk else []
    main(["calibrate", str(asked.out), "--out", str(out), "--timesteps", "2", "--fit-steps", "2", "--quiet", *flags])
    assert "sigma_delta_2_1:" in capsys.readouterr().out
    rows = [(row.name, row.timesteps, row.stage2) for row in evaluate_folder(out).rows]
    assert rows == [("control", None, None), ("qcfs", None, None), ("snn", 2, True), ("snn", 4, True)]


def test_the_ledger_of_a_classifier_counts_no_padding(place, learnt, capsys) -> None:
    asked, _ = learnt
    main(["energy", str(asked.out), "--json", "--quiet", "--sequences", "6", "--no-neurobench"])
    (ledger,) = json.loads(capsys.readouterr().out)["ledgers"]
    rows = evaluate_folder(asked.out, eval_sequences=6).rows
    forward = ledger["forward"]
    assert forward["spikes_per_neuron"] == pytest.approx(rows[-1].spikes_per_neuron, rel=0.02)
    main(["energy", str(asked.out / "control"), "--json", "--quiet", "--sequences", "6", "--no-neurobench"])
    (ann,) = json.loads(capsys.readouterr().out)["ledgers"]
    assert ann["forward"]["tokens"] == forward["tokens"]


@pytest.mark.parametrize("task", ["rte", "stsb", "text-classification", "text-regression"])
def test_pairs_regressions_and_own_data_go_the_whole_way(place, task) -> None:
    data = place / "pairs.tsv"
    columns = {} if task in GLUE else {"text_column": "sentence1", "pair_column": "sentence2", "label_column": "label"}
    results = run_conversion(options(place, f"whole-{task}", task=task, data=str(data), codings=("rate",), **columns))
    assert [row.name for row in results.rows] == ["control", "qcfs", "snn", "snn"]
    metric = (GLUE | OWN)[task].metrics[0]
    assert {row.metric for row in results.rows} == {metric}
    model = AutoModelForSequenceClassification.from_pretrained(place / f"whole-{task}")
    assert model.config.num_labels == (1 if metric == "spearman" else 2)


def test_a_model_with_a_head_is_converted_without_training(place, learnt) -> None:
    asked, _ = learnt
    results = run_conversion(options(place, "free", model=str(asked.out / "control"), stage1="none"))
    ann, control, qcfs = results.rows[:3]
    assert (ann.name, control.name, qcfs.name) == ("ann", "control", "qcfs")
    assert ann.value == control.value > 0.9
    assert results.extra["control"]["chosen"] == "ann"
    again = evaluate_folder(place / "free")
    assert [row.name for row in again.rows] == ["ann", "control", "qcfs", "snn"]
    assert again.rows[0].value == ann.value


def test_the_control_sees_what_stage_1_sees_and_teaches_it(place, monkeypatch) -> None:
    """Same rows in the same order for as many steps, from the same start; the control is the teacher of a new head."""
    seen = []
    tune = stages.fine_tune

    def watched(model, training, settings, teacher, *rest):
        batches = []
        handle = model.base_model.embeddings.register_forward_pre_hook(
            lambda module, args, kwargs: batches.append(kwargs["input_ids"].clone()) if module.training else None,
            with_kwargs=True,
        )
        start = model.classifier.weight.detach().clone()
        tuned = tune(model, training, settings, teacher, *rest)
        handle.remove()
        seen.append((batches, start, teacher, model))
        return tuned

    monkeypatch.setattr(stages, "fine_tune", watched)
    run_conversion(options(place, "watched", coverage="ffn"))
    (control, head, none, tuned), (qcfs, same_head, teacher, _) = seen
    assert len(control) == len(qcfs) == 4
    assert all(torch.equal(a, b) for a, b in zip(control, qcfs, strict=True))
    assert torch.equal(head, same_head)
    assert none is None
    assert torch.equal(teacher.classifier.weight, tuned.classifier.weight)


def test_an_interrupted_conversion_ends_the_same(place, monkeypatch) -> None:
    asked = options(place, "cut")
    whole = run_conversion(replace(asked, out=place / "uncut"))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fas.pipeline.convert.calibrate_for", killed)
        with pytest.raises(KeyboardInterrupt):
            run_conversion(asked)
    again = run_conversion(asked)
    assert [row.value for row in again.rows] == [row.value for row in whole.rows]
    one, other = (load_spiking(str(place / name), any_task=True)[0].state_dict() for name in ("cut", "uncut"))
    assert all(torch.equal(one[name], other[name]) for name in other)


# masked text before the task


def test_stage_1_may_begin_with_masked_text(place, monkeypatch) -> None:
    """Both the control and the QCFS model do, each in its own form, and start the task from there."""
    asked = options(place, "masked", mlm_data=str(place / "text.txt"), mlm_steps=3)
    starts = []
    tune = stages.fine_tune

    def watched(model, *rest):
        starts.append({name: value.clone() for name, value in model.base_model.state_dict().items()})
        return tune(model, *rest)

    monkeypatch.setattr(stages, "fine_tune", watched)
    ready = prepared(asked)
    workspace = Workspace(asked.out, ready.fingerprint(asked))
    workspace.open()
    run = ready.run(asked, workspace, Silent())
    decision = stages.train_control(run, ready.ann)
    stages.train_qcfs(run, ready.ann, decision)
    plain, (control, qcfs) = ready.source.fresh().base_model.state_dict(), starts
    weight = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(control[weight], plain[weight])
    assert not torch.equal(qcfs[weight], control[weight])
    assert torch.equal(control["pooler.dense.weight"], plain["pooler.dense.weight"])
    scale = next(name for name in qcfs if name.endswith("log_scale") and "pooler" not in name)
    fresh = ready.source.fresh()
    prepare(fresh, asked.configurations()[0], run.calibration_batches(size=16))
    assert not torch.equal(qcfs[scale], fresh.base_model.state_dict()[scale])
    assert workspace.has("text-control")
    assert workspace.has("text-qcfs")


# what is refused


def test_what_does_not_fit_is_refused_before_anything_is_computed(place, learnt) -> None:
    asked, _ = learnt
    refused = [
        (options(place, "x", stage1="none"), ConfigError, "no head"),
        (
            options(place, "x", model=str(asked.out / "control"), task="mnli", data=str(place / "pairs.tsv")),
            FasError,
            "2 classes",
        ),
        (options(place, "x", model=str(asked.out)), FasError, "converted already"),
        (options(place, "x", data=str(place / "no.tsv")), DataError, "does not exist"),
        (options(place, "x", task="language-modeling", data=str(place / "text.txt")), FasError, "causal"),
    ]
    for wrong, kind, words in refused:
        with pytest.raises(kind, match=words):
            run_conversion(wrong)
        assert not (place / "x").exists()
        assert not (place / "x.work").exists()
    for bad in (
        {"task": "glue"}, {"task": "language-modeling", "text_column": "a"}, {"mlm_data": "a", "stage1": "none"},
        {"task": "language-modeling", "mlm_data": "a"}, {"mlm_steps": 0},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            options(place, "x", **bad)


def test_the_command_names_the_tasks_and_knows_where_their_data_is(place, capsys, monkeypatch) -> None:
    assert main(["convert", "--task", "sst-2", "--model", str(place / "encoder"), "--out", str(place / "z")]) != 0
    assert "sst2" in capsys.readouterr().err
    assert main(["convert", "--task", "text-classification", "--model", "m", "--out", str(place / "z")]) != 0
    assert "--data must be given" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *names: asked.append(names) or {})
    assert main(["convert", "--task", "rte", "--model", str(place / "encoder"), "--out", str(place / "z")]) != 0
    assert asked == [("nyu-mll/glue", "rte")]
    assert "no split called train" in capsys.readouterr().err


def test_the_hub_gives_training_and_validation_rows(place, monkeypatch) -> None:
    rows = [{"premise": f"w{i}", "hypothesis": "w2", "label": i % 3, "idx": i} for i in range(40)]
    table = {"train": rows[:30], "validation_matched": rows[30:35], "test_matched": rows[35:]}
    monkeypatch.setattr("datasets.load_dataset", lambda *names: table)
    data = load_labelled(GLUE["mnli"], "nyu-mll/glue:mnli")
    assert [row.text for row in data.evaluation] == [f"w{i}" for i in range(30, 35)]
    assert len(data.training) + len(data.held_out) == 30


def test_commands_for_language_models_refuse_a_classifier(place, learnt) -> None:
    asked, _ = learnt
    with pytest.raises(FasError, match="BertForSequenceClassification"):
        load_spiking(str(asked.out))
    with pytest.raises(FasError, match="causal"):
        load_ann(str(asked.out / "control"))
    bare = place / "bare"
    shutil.copytree(asked.out, bare)
    (bare / "results.json").unlink()
    with pytest.raises(FasError, match="does not fit the task language-modeling"):
        evaluate_folder(bare, str(place / "text.txt"))


def test_a_checkpoint_that_lacks_weights_of_the_encoder_is_refused(place) -> None:
    folder = place / "holes"
    folders.save_encoder(folder)
    values = load_file(folder / "model.safetensors")
    values.pop("encoder.layer.1.output.dense.weight")
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks"):
        run_conversion(options(place, "y", model=str(folder)))
