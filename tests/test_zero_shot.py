"""Zero-shot tasks through lm-evaluation-harness: the figures of an independent scorer, offline, nothing lost to an error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import fas
from fas.errors import ConfigError, DataError, FasError
from fas.pipeline.convert import run_conversion
from fas.pipeline.options import ConvertOptions
from fas.pipeline.zero_shot import evaluate_tasks
from fas.runtime.control import as_qcfs, sites_of
from fas.runtime.spikes import counting
from fas.tasks.harness import HarnessLM
from fas.tasks.zero_shot import Asked, HarnessTask, figures, load_tasks

SHARED = Path(__file__).parents[1] / ".." / "shared"
FIVE = ("piqa", "arc_easy", "openbook_qa", "copa", "winogrande")
WORDS = folders.WORDS
BATCH = {"input_ids": tiny.tokens(2, 9)}


def log_likelihood(model: PreTrainedModel, tokenizer: Any, context: str, continuation: str) -> tuple[float, bool]:
    """One pair, alone, without padding, by the definition; and whether tokens were left out."""
    context, space = context.rstrip(), context[len(context.rstrip()) :]
    before = tokenizer(context)["input_ids"]
    after = tokenizer(context + space + continuation)["input_ids"][len(before) :]
    room = model.config.max_position_embeddings
    ids = [*before, *after][-(room + 1) :]
    count = min(len(after), len(ids) - 1)
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0].double()
    found = logits.log_softmax(-1)[-count:].gather(1, torch.tensor(ids[-count:])[:, None])
    return float(found.sum()), len(before) + len(after) > len(ids)


def pairs_of(row: dict[str, Any], delimiter: str) -> Iterator[tuple[str, str]]:
    if "choices" in row:
        yield from ((row["query"], delimiter + choice) for choice in row["choices"])
    elif "context_options" in row:
        yield from ((context, delimiter + row["continuation"]) for context in row["context_options"])
    else:
        yield row["context"], delimiter + row["continuation"]


def check_against_scorer(
    model: PreTrainedModel, tokenizer: Any, path: Path, limit: int | None, delimiter: str = " "
) -> int:
    """Every likelihood, both accuracies and the number of cut items; gives the number of items back."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    chosen = range(len(rows)) if limit is None else torch.linspace(0, len(rows) - 1, limit).long().tolist()
    (task,) = load_tasks([str(path)], tokenizer, Asked(limit=limit))
    found = task.evaluate(model, 4)
    assert found.error is None
    instances = iter(task.loaded["tasks"][path.stem].instances)
    right, right_by_length, cut_items, nats = 0, 0, 0, 0.0
    for number in chosen:
        row = rows[number]
        wanted = [log_likelihood(model, tokenizer, *pair) for pair in pairs_of(row, delimiter)]
        given = [next(instances).resps[0][0] for _ in wanted]
        assert given == pytest.approx([value for value, _ in wanted], rel=1e-9)
        cut_items += any(cut for _, cut in wanted)
        nats -= sum(value for value, _ in wanted)
        if "gold" in row:
            right += max(range(len(given)), key=given.__getitem__) == row["gold"]
            lengths = [len(text) for text in row.get("choices", row.get("context_options"))]
            right_by_length += max(range(len(given)), key=lambda i: given[i] / lengths[i]) == row["gold"]
    assert next(instances, None) is None
    assert found.truncated == cut_items
    assert found.loss == pytest.approx(nats / found.tokens, rel=1e-9)
    if "choices" in rows[0]:
        assert found.metrics["acc_norm"] == pytest.approx(right_by_length / len(chosen))
    if "gold" in rows[0]:
        assert found.metrics["acc"] == pytest.approx(right / len(chosen))
        share = right / len(chosen)
        if found.metric == "acc":
            assert found.stderr == pytest.approx(math.sqrt(share * (1 - share) / (len(chosen) - 1)))
    return found.items


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared: BabyLlama and five files of questions")
@pytest.mark.parametrize("count", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_babyllama_snn_has_the_likelihoods_of_an_independent_scorer(count: int) -> None:
    """On so many items of each file, evenly from all of it."""
    place = SHARED / "models/babyllama-tok361-hf"
    tokenizer = AutoTokenizer.from_pretrained(place)
    story = tokenizer("Once upon a time there was a little girl. She had a dog, and the dog was big.")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64)
    config = fas.SpikingConfig(coverage="linear", levels=7, timesteps=3)
    model = fas.convert(fas.prepare(model, config, [{"input_ids": torch.tensor([story])}]))
    delimiters = dict.fromkeys(FIVE, " ") | {"piqa": ""}  # its questions end a line
    items = [
        check_against_scorer(model, tokenizer, SHARED / f"data/multiple_choice/{name}.jsonl", count, delimiters[name])
        for name in FIVE
    ]
    assert items == [count] * 5


def text(start: int, count: int, step: int = 3) -> str:
    return " ".join(WORDS[(start + step * i) % len(WORDS)] for i in range(count))


def questions() -> list[dict[str, Any]]:
    """Of differing length; the last ones are longer than 64 tokens, one of them by its answer alone."""
    rows = [
        {"query": text(i, 5 + i), "choices": [text(5 * i + j, 2 + j, 7) for j in range(3)], "gold": i % 3}
        for i in range(10)
    ]
    rows += [{"query": text(3, 70), "choices": [text(1, 2), text(2, 9)], "gold": 1}]
    return [*rows, {"query": text(4, 6), "choices": [text(1, 2), text(2, 80)], "gold": 0}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A converted folder with its control, and files of all three shapes."""
    root = tmp_path_factory.mktemp("zero-shot")
    partial = [
        {"context_options": [text(i, 4), text(i + 2, 6)], "continuation": text(3 * i, 3, 5), "gold": i % 2}
        for i in range(6)
    ]
    cloze = [{"context": text(i, 8), "continuation": WORDS[i]} for i in range(6)]
    files = {
        "questions": write(root / "questions.jsonl", questions()), "partial": write(root / "partial.jsonl", partial),
        "cloze": write(root / "cloze.jsonl", cloze),
    }  # fmt: skip
    options = ConvertOptions(
        model=folders.save_ann(root / "ann"), data=folders.save_text(root / "text.txt"), out=root / "snn", levels=4,
        timesteps=(2, 4), stage1="none", length=16, calibration_sequences=4, eval_sequences=4,
    )  # fmt: skip
    run_conversion(options)
    return {"root": root, "snn": root / "snn", "tokenizer": AutoTokenizer.from_pretrained(root / "ann"), **files}


@pytest.mark.parametrize("shape", ["questions", "partial", "cloze"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_shape_has_the_likelihoods_of_an_independent_scorer(place, shape, family) -> None:
    model = tiny.exact(tiny.snn(family, levels=4, timesteps=3))
    assert check_against_scorer(model, place["tokenizer"], place[shape], None) in (6, 12)
    with as_qcfs(model):
        check_against_scorer(model, place["tokenizer"], place[shape], 3)


def test_items_longer_than_the_context_are_counted(place) -> None:
    (task,) = load_tasks([str(place["questions"])], place["tokenizer"], Asked())
    found = task.evaluate(tiny.ann("gpt2"), 4)
    assert (found.items, found.truncated) == (12, 2)
    (task,) = load_tasks([str(place["questions"])], place["tokenizer"], Asked(length=10))
    longest = [len(row["query"].split()) + max(len(c.split()) for c in row["choices"]) for row in questions()]
    assert task.evaluate(tiny.ann("gpt2"), 4).truncated == sum(count > 11 for count in longest)


def test_neither_batch_nor_company_changes_likelihoods_or_spikes(place) -> None:
    model = tiny.exact(tiny.snn("llama", levels=4, timesteps=3))
    (task,) = load_tasks([str(place["questions"])], place["tokenizer"], Asked())
    seen = []
    for size in (1, 5):
        with counting(model) as spikes:
            found = task.evaluate(model, size)
        likelihoods = [instance.resps[0][0] for instance in task.loaded["tasks"]["questions"].instances]
        seen.append((likelihoods, {name: (int(c.by_timestep.sum()), c.neurons) for name, c in spikes.sites.items()}))
        assert found.tokens > 100
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-12)
    assert seen[0][1] == seen[1][1]


def test_spikes_are_counted_on_the_tokens_that_were_read(place) -> None:
    model = tiny.snn("gpt2", levels=4, timesteps=3)
    (task,) = load_tasks([str(place["partial"])], place["tokenizer"], Asked())
    with counting(model) as spikes:
        task.evaluate(model, 16)
    rows = [json.loads(line) for line in place["partial"].read_text().splitlines()]
    tokens = sum(len(f"{c} {row['continuation']}".split()) - 1 for row in rows for c in row["context_options"])
    widths = {name: site.width for name, site in sites_of(model).items()}
    assert {name: count.neurons for name, count in spikes.sites.items()} == {n: tokens * w for n, w in widths.items()}


GENERATED = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: context
doc_to_target: continuation
generation_kwargs: {{until: ["</s>"], max_gen_toks: {count}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """
task: rolled
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: query
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
"""
CHOICE = """
task: {name}
tag: parts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GROUP = "group: both\ntask: [first, second]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"


@pytest.fixture(scope="module")
def yaml(place) -> Path:
    folder = place["root"] / "yaml"
    folder.mkdir()
    (folder / "wrote.yaml").write_text(GENERATED.format(name="wrote", data=place["cloze"], count=3))
    (folder / "greedy.yaml").write_text(GENERATED.format(name="greedy", data=place["cloze"], count=64))
    (folder / "rolled.yaml").write_text(ROLLING.format(data=place["questions"]))
    few = write(place["root"] / "few.jsonl", questions()[:5])
    for name, data in (("first", place["questions"]), ("second", few)):
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, data=data))
    (folder / "both.yaml").write_text(GROUP)
    return folder


def test_a_group_has_one_row_and_a_tag_one_for_each_task(place, yaml) -> None:
    model = tiny.ann("gpt2")
    first, second = load_tasks(["parts"], place["tokenizer"], Asked(), [yaml])
    (both,) = load_tasks(["both"], place["tokenizer"], Asked(), [yaml])
    assert [task.name for task in (first, second, both)] == ["first", "second", "both"]
    parts, whole = [task.evaluate(model, 4) for task in (first, second)], both.evaluate(model, 4)
    assert [part.items for part in parts] == [12, 5]
    assert (whole.items, whole.truncated, whole.tokens) == (17, 2, sum(part.tokens for part in parts))
    assert whole.value == pytest.approx(sum(part.value * part.items for part in parts) / 17)
    with pytest.raises(ConfigError, match="two of the tasks are called first"):
        load_tasks(["parts", str(yaml / "first.yaml")], place["tokenizer"], Asked(), [yaml])
    (limited,) = load_tasks(["both"], place["tokenizer"], Asked(limit=3), [yaml])
    assert limited.evaluate(model, 4).items == 6


def test_examples_in_front_as_the_task_or_the_user_says(place, yaml) -> None:
    (yaml / "none.yaml").write_text(CHOICE.format(name="none", data=place["questions"]) + "num_fewshot: 0\n")
    (yaml / "two.yaml").write_text(CHOICE.format(name="two", data=place["questions"]) + "num_fewshot: 2\n")
    for asked, counts in ((None, [0, 2, 0]), (1, [0, 1, 1])):
        tasks = load_tasks(["none", "two", "first"], place["tokenizer"], Asked(num_fewshot=asked), [yaml])
        assert [task.loaded["tasks"][task.name].get_config("num_fewshot") for task in tasks] == counts


@pytest.mark.parametrize("family", ["gpt2", "opt_projected", "llama", "gemma2", "qwen3"])
def test_the_model_stays_as_it_is(place, family) -> None:
    for tied in (False, True):
        model = fas.convert(
            fas.prepare(tiny.ann(family, tie_word_embeddings=tied), fas.SpikingConfig(levels=4, timesteps=3), [BATCH])
        )
        before = model(**BATCH).logits
        HarnessLM(model, place["tokenizer"])
        assert torch.equal(model(**BATCH).logits, before)


def test_generation_is_the_models_own_greedy_one(place, yaml) -> None:
    model = tiny.exact(tiny.snn("gpt2", levels=4, timesteps=3))
    (task,) = load_tasks(["wrote"], place["tokenizer"], Asked(), [yaml])
    found = task.evaluate(model, 4)
    assert found.error is None
    assert (found.metric, found.items, found.truncated) == ("exact_match", 6, 0)
    for instance in task.loaded["tasks"]["wrote"].instances:
        ids = torch.tensor([place["tokenizer"](instance.args[0])["input_ids"]])
        written = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=2)[0, ids.shape[1] :]
        assert instance.resps[0] == place["tokenizer"].decode(written, skip_special_tokens=True)
    (task,) = load_tasks(["wrote"], place["tokenizer"], Asked(length=9), [yaml])
    assert task.evaluate(model, 4).truncated == 6  # 8 words and room for 3
    (task,) = load_tasks(["wrote"], place["tokenizer"], Asked(length=11), [yaml])
    assert task.evaluate(model, 4).truncated == 0


def test_a_task_that_does_not_say_how_long_leaves_half_of_the_context(place, yaml) -> None:
    model = tiny.ann("gpt2")
    text = GENERATED.format(name="free", data=place["cloze"], count=3).replace(", max_gen_toks: 3", "")
    (yaml / "free.yaml").write_text(text)
    (task,) = load_tasks(["free"], place["tokenizer"], Asked(limit=2), [yaml])
    assert task.evaluate(model, 4).error is None
    for instance in task.loaded["tasks"]["free"].instances:
        assert 20 < len(instance.resps[0].split()) <= 32


def test_rolling_perplexity_by_word_and_byte(place, yaml) -> None:
    model, tokenizer = tiny.exact(tiny.snn("gpt2", levels=4, timesteps=3)), place["tokenizer"]
    (task,) = load_tasks([str(yaml / "rolled.yaml")], tokenizer, Asked(limit=6))
    found = task.evaluate(model, 4)
    assert found.error is None
    texts = [questions()[i]["query"] for i in torch.linspace(0, 11, 6).long().tolist()]
    nats, words, size = 0.0, 0, 0
    for document in texts:
        ids = [tokenizer.eos_token_id, *tokenizer(document)["input_ids"]]
        for begin in range(0, len(ids) - 1, 64):  # each window predicts what the one before did not
            end = min(begin + 64, len(ids) - 1)
            part = torch.tensor([ids[max(0, end - 64) : end + 1]])
            with torch.no_grad():
                said = model(part[:, :-1], use_cache=False).logits[0].log_softmax(-1)
            nats -= float(said.gather(1, part[0, 1:, None])[-(end - begin) :].sum())
        words, size = words + len(document.split()), size + len(document.encode())
    assert found.metric == "word_perplexity"
    assert found.metrics["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-9)
    assert found.metrics["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-9)


def test_cloze_has_a_perplexity_and_an_accuracy(place) -> None:
    model, tokenizer = tiny.exact(tiny.snn("gpt2", levels=4, timesteps=3)), place["tokenizer"]
    (task,) = load_tasks([str(place["cloze"])], tokenizer, Asked())
    found = task.evaluate(model, 4)
    rows = [json.loads(line) for line in place["cloze"].read_text().splitlines()]
    nats = [-log_likelihood(model, tokenizer, row["context"], " " + row["continuation"])[0] for row in rows]
    assert found.metrics["perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)))
    assert found.metric == "acc"


def figures_of(results) -> list[tuple[Any, ...]]:
    return [(r.name, r.task, r.timesteps, r.value, r.metrics, r.stderr, r.spikes_per_neuron) for r in results.rows]


def test_two_runs_are_equal_and_every_model_sees_the_same_examples(place) -> None:
    names = [str(place["questions"]), str(place["partial"])]
    first, second = (
        evaluate_tasks(place["snn"], names, num_fewshot=2, limit=5, layerwise=True, length=40) for _ in range(2)
    )
    assert figures_of(first) == figures_of(second)
    kinds = [(row.name, row.schedule, row.timesteps) for row in first.rows if row.task == "questions"]
    assert kinds == [
        ("ann", None, None), ("control", None, None), ("qcfs", None, None), ("snn", "layerwise", 4),
        ("snn", "synchronous", 2), ("snn", "synchronous", 4),
    ]  # fmt: skip
    assert [row.task for row in first.rows] == ["questions"] * 6 + ["partial"] * 6
    ann, control, qcfs, layerwise, *snns = first.rows[:6]
    assert (ann.value, ann.loss) == (
        control.value,
        control.loss,
    )  # stage1=none: the same weights, and the same examples
    assert layerwise.loss == qcfs.loss
    assert all(row.spikes_per_neuron > 0 and row.items == 5 for row in snns)
    (task,) = load_tasks(names[:1], place["tokenizer"], Asked(num_fewshot=2))
    model = tiny.ann("gpt2")
    prompts = []
    for _ in range(2):
        task.evaluate(model, 4)
        prompts.append([instance.args for instance in task.loaded["tasks"]["questions"].instances])
    assert prompts[0] == prompts[1]
    assert all(prompt.count("\n\n") == 2 for prompt, _ in prompts[0])


def test_a_failing_task_leaves_the_others_their_rows(place, yaml) -> None:
    results = evaluate_tasks(place["snn"], [str(place["cloze"]), "greedy"], include=[yaml], timesteps=(4,))
    by_task = {task: [row for row in results.rows if row.task == task] for task in ("cloze", "greedy")}
    assert [len(rows) for rows in by_task.values()] == [4, 4]
    assert all(row.value is not None and row.error is None for row in by_task["cloze"])
    assert all(row.value is None and row.spikes_per_neuron is None for row in by_task["greedy"])
    assert all("must be less than model's maximum sequence length (64)" in row.error for row in by_task["greedy"])
    assert by_task["greedy"][-1].timesteps == 4
    with pytest.raises(FasError, match="no task could be measured; greedy: Invalid configuration"):
        evaluate_tasks(place["snn"], ["greedy"], include=[yaml], timesteps=(4,))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "holds no questions"),
        ([{"question": "a"}], "has the columns question; questions have query, choices, gold; or"),
        ([{"query": "a", "choices": ["b", "c"], "gold": 0}, {"query": "a", "gold": 0}], "question 2: there is no choices"),
        ([{"query": " ", "choices": ["b", "c"], "gold": 0}], "question 1: query=' ' is no text"),
        ([{"query": "a", "choices": ["b"], "gold": 0}], "no list of two or more texts"),
        ([{"query": "a", "choices": ["b", ""], "gold": 0}], "has an entry that is no text"),
        ([{"query": "a", "choices": ["b", "c"], "gold": 2}], "gold=2 is no number from 0 to 1"),
        ([{"query": "a", "choices": ["b", "c"], "gold": "1"}], "gold='1' is no number from 0 to 1"),
    ],
)  # fmt: skip
def test_bad_questions_are_named(tmp_path, place, rows, says) -> None:
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=r"bad\.jsonl") as caught:
        load_tasks([str(path)], place["tokenizer"], Asked())
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("names", "include", "error", "says"),
    [
        (["questionz"], [], ConfigError, "no task of lm-eval"),
        (["piqqa"], [], ConfigError, "did you mean piqa"),
        (["{root}/none.jsonl"], [], DataError, "none.jsonl does not exist"),
        (["{root}/none.yaml"], [], DataError, "none.yaml does not exist"),
        (["{root}/questions.jsonl", "{root}/questions.jsonl"], [], ConfigError, "two of the tasks are called questions"),
        (["{root}/questions.jsonl"], ["{root}/nowhere"], ConfigError, "nowhere' is no folder"),
        (["{root}/questions.jsonl", "piqa"], [], DataError, "the task piqa cannot be loaded: .*; without the hub, give files"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_had_is_an_error_before_anything_is_computed(
    place, monkeypatch, names, include, error, says
) -> None:
    monkeypatch.setattr("fas.pipeline.zero_shot.load_spiking", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = [name.format(root=place["root"]) for name in names]
    with pytest.raises(error, match=says):
        evaluate_tasks(place["snn"], names, include=[Path(folder.format(root=place["root"])) for folder in include])


def test_what_does_not_continue_text_is_refused(tmp_path, place) -> None:
    with pytest.raises(FasError, match="BertForMaskedLM is no causal language model"):
        HarnessLM(tiny.ann("bert_mlm"), place["tokenizer"])
    tiny.snn("bert_sequence").save_pretrained(tmp_path / "bert")
    with pytest.raises(FasError, match=r"but BertForSequenceClassification, and .* measure it with --data"):
        evaluate_tasks(tmp_path / "bert", [str(place["questions"])])


def test_without_lm_eval_one_sentence_says_what_to_install(place, monkeypatch) -> None:
    for name in [name for name in sys.modules if name in ("fas.tasks.harness", "fas.tasks.zero_shot")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.instance", None)
    with pytest.raises(FasError, match=r"pip install '\.\[eval\]'"):
        evaluate_tasks(place["snn"], [str(place["questions"])])


def test_the_metric_that_counts_is_the_usual_one() -> None:
    entry = {"alias": "x", "sample_len": 5, "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.25,
             "acc_norm_stderr,none": "N/A", "exact_match,strict": 0.75}  # fmt: skip
    metrics, errors = figures(entry, "piqa")
    assert list(metrics.items()) == [("acc", 0.5), ("acc_norm", 0.25), ("exact_match,strict", 0.75)]
    assert errors == {"acc": 0.1}
    assert next(iter(figures(entry, "hellaswag")[0])) == "acc_norm"
    with pytest.raises(FasError, match="gave no figure"):
        figures({"alias": "x"}, "x")


def test_a_harness_task_is_what_any_row_can_be_measured_on(place) -> None:
    (task,) = load_tasks([str(place["partial"])], place["tokenizer"], Asked())
    assert isinstance(task, HarnessTask)
    model = tiny.snn("gpt2", levels=4, timesteps=3)
    found = task.evaluate_spiking(model, 8)
    assert found.spikes is not None
    assert found.spikes.per_neuron > 0


def test_the_page_is_linked() -> None:
    root = Path(__file__).parents[1]
    assert "docs/zero-shot.md" in (root / "README.md").read_text()
    assert (root / "docs" / "zero-shot.md").exists()
