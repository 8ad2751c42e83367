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
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fas.cli import main
from fas.conversion import prepare
from fas.errors import CheckpointError, ConfigError, DataError, FasError
from fas.losses import logits_kl, logits_loss
from fas.pipeline import stages
from fas.pipeline.convert import run_conversion
from fas.pipeline.evaluate import evaluate_folder
from fas.pipeline.load import load_ann, load_spiking
from fas.pipeline.options import ConvertOptions
from fas.pipeline.prepared import prepared
from fas.pipeline.workspace import Workspace
from fas.progress import Silent
from fas.report.table import plain_table
from fas.runtime.control import sites_of
from fas.runtime.spikes import counting
from fas.tasks.glue import GLUE, OWN
from fas.tasks.labelled import Labelled, load_labelled
from fas.tasks.language_modeling import Blocks
from fas.tasks.masked import MaskedBlocks
from fas.tasks.text_classification import encode_labelled

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


# examples


@pytest.fixture(scope="module")
def examples(place):
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    rows = [Labelled(" ".join(folders.WORDS[: 1 + i % 7]), None, i % 2) for i in range(40)]
    return encode_labelled(tokenizer, GLUE["sst2"], GLUE["sst2"].labels, rows, 6)


def test_texts_are_cut_where_the_model_ends_and_counted(examples) -> None:
    """One to seven words between [CLS] and [SEP]; six tokens are seen, so five, six and seven words are cut."""
    assert examples.truncated == sum(i % 7 >= 4 for i in range(40))
    assert sorted(set(examples.lengths())) == [3, 4, 5, 6]
    assert all(example["input_ids"][0] == 0 and example["input_ids"][-1] == 1 for example in examples.encoded)
    assert examples.about() == {"sequences": 40, "length": 6, "truncated": examples.truncated}


def test_a_batch_is_padded_and_says_where(examples) -> None:
    batch = examples.collate([examples[0], examples[3]])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch["input_ids"][0, 3:].tolist() == [2, 2, 2]
    assert batch["labels"].tolist() == [0, 1]


def test_batches_for_calibration_meet_no_padding_and_miss_no_text(examples) -> None:
    batches = examples.unpadded(5)
    assert all(bool(batch["attention_mask"].all()) and "labels" not in batch for batch in batches)
    assert max(len(batch["input_ids"]) for batch in batches) == 5
    seen = sorted(ids.tolist() for batch in batches for ids in batch["input_ids"])
    assert seen == sorted(example["input_ids"] for example in examples.encoded)
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert lengths != sorted(lengths), "the first few are to hold more than the shortest"
    again = examples.unpadded(5)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))


def test_calibration_takes_full_batches_of_one_length_from_all_over(place) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    rows = [Labelled(" ".join(folders.WORDS[i % 80 : i % 80 + 1 + i % 5]), None, 0) for i in range(400)]
    examples = encode_labelled(tokenizer, GLUE["sst2"], GLUE["sst2"].labels, rows, 64)
    batches = examples.for_calibration(96, 4)
    assert [len(batch["input_ids"]) for batch in batches] == [16] * 6
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1
    assert all(bool(batch["attention_mask"].all()) for batch in batches)
    assert all("labels" not in batch for batch in batches)
    known = {tuple(example["input_ids"]) for example in examples.encoded}
    assert {tuple(ids.tolist()) for batch in batches for ids in batch["input_ids"]} <= known
    few = examples.picked(range(10))  # two of each length
    assert sum(len(batch["input_ids"]) for batch in few.for_calibration(None, 4)) <= 10
    assert sum(len(batch["input_ids"]) for batch in examples.for_calibration(20, 4)) == 20
    assert [len(batch["input_ids"]) for batch in Blocks(torch.zeros(40, 3).long()).for_calibration(None, 5)] == [
        5
    ] * 6 + [2]


def test_no_text_is_calibrated_on_twice(place) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    rows = [Labelled(f"{folders.WORDS[i % 80]} {folders.WORDS[i // 80]}", None, 0) for i in range(160)]
    examples = encode_labelled(tokenizer, GLUE["sst2"], GLUE["sst2"].labels, rows, 64)
    batches = examples.for_calibration(160, 4)
    seen = [tuple(ids.tolist()) for batch in batches for ids in batch["input_ids"]]
    assert len(seen) == len(set(seen)) == 160
    few = {tuple(ids.tolist()) for batch in examples.for_calibration(48, 4) for ids in batch["input_ids"]}
    for number in (0, 79, 159):  # evenly spaced, each with the next fifteen
        assert tuple(examples[number]["input_ids"]) in few
    assert all(tuple(examples[number]["input_ids"]) in few for number in range(79, 95))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("regression", [False, True])
def test_a_model_is_scored_as_one_text_at_a_time_scores_it(place, batch_size, regression) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    task = GLUE["stsb"] if regression else GLUE["mrpc"]
    made = torch.Generator().manual_seed(0)
    rows = [
        Labelled(
            " ".join(folders.WORDS[int(w)] for w in torch.randint(80, (1 + i % 9,), generator=made)),
            " ".join(folders.WORDS[int(w)] for w in torch.randint(80, (1 + i % 4,), generator=made)),
            i / 7 if regression else i % 2,
        )
        for i in range(30)
    ]
    examples = encode_labelled(tokenizer, task, task.labels or (), rows, 64)
    model = tiny.ann("bert_sequence", num_labels=1 if regression else 2)
    found = examples.evaluate(model, batch_size)
    logits = []
    for row in rows:
        with torch.no_grad():
            logits.append(model(**tokenizer(row.text, row.pair, return_tensors="pt")).logits[0])
    logits, wanted = torch.stack(logits), torch.tensor([row.label for row in rows])
    if regression:
        assert found.loss == pytest.approx(float(F.mse_loss(logits[:, 0], wanted)), rel=1e-4)
        pearson = float(torch.corrcoef(torch.stack([logits[:, 0], wanted]))[0, 1])
        assert found.metrics["pearson"] == pytest.approx(pearson, abs=1e-4)
        assert found.metric == "spearman"
    else:
        assert found.loss == pytest.approx(float(F.cross_entropy(logits, wanted)), rel=1e-4)
        assert found.metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == wanted).float().mean()))
        assert (found.metric, found.value) == ("f1", found.metrics["f1"])
    assert found.badness == -found.value


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


def test_masked_blocks_hide_the_same_tokens_for_the_same_seed(place) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    blocks = torch.randint(5, 90, (6, 40), generator=torch.Generator().manual_seed(1))
    first, second, other = (MaskedBlocks(blocks, tokenizer, seed) for seed in (0, 0, 1))
    batches = [some.collate([some[i] for i in range(6)]) for some in (first, second, other)]
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert not torch.equal(batches[0]["input_ids"], batches[2]["input_ids"])
    hidden = batches[0]["labels"] != -100
    assert 0.08 < hidden.float().mean() < 0.24
    assert torch.equal(batches[0]["labels"][hidden], blocks[hidden])
    assert torch.equal(batches[0]["input_ids"][~hidden], blocks[~hidden])


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


# losses


def test_a_regression_is_a_squared_error_and_classes_are_a_divergence() -> None:
    student, teacher = torch.randn(7, 1), torch.randn(7, 1)
    assert float(logits_loss(student, teacher)) == pytest.approx(float((student - teacher).square().mean()))
    student, teacher = torch.randn(7, 3), torch.randn(7, 3)
    assert torch.equal(logits_loss(student, teacher, 2.0), logits_kl(student, teacher, 2.0))
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert float(logits_loss(student, teacher)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)


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


def test_blocks_and_texts_are_examples_alike() -> None:
    blocks = Blocks(torch.arange(40).view(10, 4))
    assert [int(example["input_ids"][0]) for example in blocks.some(3)] == [0, 16, 36]
    assert blocks.some(None) is blocks
    assert blocks.collate([blocks[0], blocks[2]])["labels"].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
