"""Stage 1 a block at a time: the same bits in memory and from disk, resumed or not, in memory that does not grow with depth."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import tiny_vl
import torch
from safetensors.torch import load, load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

import fas
from fas.cli import main
from fas.conversion import massive
from fas.errors import CheckpointError, ConfigError, DataError, FasError
from fas.models import find_segments
from fas.pipeline.convert import run_conversion
from fas.pipeline.load import load_spiking
from fas.pipeline.options import ConvertOptions
from fas.progress import Silent
from fas.report.results import Results
from fas.runtime.control import clock_of, sites_of
from fas.runtime.prefix import shapes_of
from fas.runtime.replay import blocks_of
from fas.training import BlockOptions, BlockReport, prefix_search_from_disk, train_blocks, train_blocks_folder
from fas.training.states import block_outputs, states_loss

OPTIONS = BlockOptions(steps=8, lr=2e-3, scale_lr=1e-2)
BATCHES = [{"input_ids": tiny.tokens(3, 9, seed)} for seed in range(4)]
CONFIG = fas.SpikingConfig(coverage="linear", levels=4, timesteps=3, prefix=())


def trained(family: str, config: fas.SpikingConfig, options: BlockOptions = OPTIONS, **more: Any) -> Any:
    """Model, its teacher, and the reports."""
    model, teacher = tiny.ann(family), tiny.ann(family)
    return model, teacher, train_blocks(model, teacher, config, BATCHES, options, **more)


def saved(model: PreTrainedModel, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def assert_equal(one: PreTrainedModel, other: PreTrainedModel) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("family", "settings", "how"),
    [
        ("gpt2", {}, {}),
        ("gpt2", {"coverage": "full", "prefix": (5, 7), "center": True}, {}),
        ("llama", {"prefix": (5,), "center": True, "rotation": "heads"}, {"max_shard_size": "20KB"}),
        ("opt_projected", {"coverage": "attention", "prefix": (4,), "center": True}, {}),
        ("bert_mlm", {"coverage": "ffn"}, {}),
    ],
)
def test_from_disk_it_ends_as_in_memory(
    tmp_path: Path, family: str, settings: dict[str, Any], how: dict[str, Any]
) -> None:
    """The same weights, scales, prefix and order of sites; the teacher is what it was; each block comes closer to the ANN's."""
    config = CONFIG.replaced(**settings)
    folder = saved(tiny.ann(family), tmp_path / "ann", **how)
    model, teacher, reports = trained(family, config)
    assert_equal(teacher, tiny.ann(family))
    assert str(teacher) == str(tiny.ann(family))
    auto = AutoModelForMaskedLM if family == "bert_mlm" else AutoModelForCausalLM
    assert reports == train_blocks_folder(folder, tmp_path / "out", config, BATCHES, OPTIONS, auto_class=auto)
    other = auto.from_pretrained(tmp_path / "out").eval()
    assert_equal(model, other)
    assert torch.equal(model(**BATCHES[0]).logits, other(**BATCHES[0]).logits)
    assert model.config.quantization_config.to_dict() == other.config.quantization_config.to_dict()
    assert clock_of(model).config.prefix == config.prefix
    assert len(shapes_of(model)) == 2 * bool(config.prefix)
    assert all(site.log_scale.abs().max() > 0 for site in sites_of(model).values()), "every site has a scale of its own"
    fallen = [report.after < 0.97 * report.before for report in reports]
    assert all(fallen) == (family != "bert_mlm")  # whose steps are too large, see below
    assert not list(tmp_path.glob("*.work"))
    prepared = fas.prepare(tiny.ann(family), config, BATCHES)
    assert list(sites_of(prepared)) == list(sites_of(model))


def test_without_steps_the_first_block_is_as_prepared() -> None:
    """Its input is not quantized; the second one's scales fit what the first gives out."""
    model, _, reports = trained("gpt2", CONFIG, BlockOptions(steps=0))
    prepared = fas.prepare(tiny.ann("gpt2"), CONFIG, BATCHES).state_dict()
    differ = {name for name, value in model.state_dict().items() if not torch.equal(value, prepared[name])}
    assert not [name for name in differ if ".h.0." in name]
    assert [name for name in differ if ".h.1." in name and name.endswith("log_scale")]
    assert all(name.endswith(("log_scale", "bias")) for name in differ)  # biases: what units leave out of GELU
    assert all(report.before == report.after for report in reports)


def test_a_block_that_training_makes_worse_stays_as_fitted() -> None:
    progress = KillAt(99)
    model, _, reports = trained("gpt2", CONFIG, BlockOptions(steps=3, lr=3.0), progress=progress)
    fitted, _, before = trained("gpt2", CONFIG, BlockOptions(steps=0))
    assert_equal(model, fitted)
    assert reports == before
    assert [note for note in progress.said if "block 1 is no better trained" in note]


def test_blocks_learn_the_anns_states_on_quantized_inputs() -> None:
    """The last hidden states of the whole model come closer to the ANN's than those of the fitted model are."""
    ends = []
    for steps in (0, 40):
        model, teacher, reports = trained("llama", CONFIG, BlockOptions(steps=steps, lr=2e-3, scale_lr=1e-2))
        with torch.no_grad(), block_outputs(model) as mine, block_outputs(teacher) as wanted:
            for net in (model, teacher):
                net(**BATCHES[0])
        ends.append(float(states_loss(mine[-1:], wanted[-1:])))
    errors = [report.after for report in reports]
    assert ends[1] < 0.6 * ends[0]
    assert ends[1] == pytest.approx(errors[-1], rel=0.3)  # what was reported, of all batches


def test_what_stands_outside_of_the_blocks_stays() -> None:
    model, teacher, _ = trained("gpt2", CONFIG)
    inside = {id(p) for block in blocks_of(find_segments(model)[0]) for p in block.parameters()}
    before = dict(teacher.named_parameters())
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside:
            assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    moved = [name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert {"transformer.h.1.attn.c_attn.weight", "transformer.h.1.ln_2.weight"} <= set(moved)


def test_another_seed_draws_another_order_and_the_same_one_the_same() -> None:
    one, again, other = (trained("gpt2", CONFIG, BlockOptions(steps=6, seed=seed))[0] for seed in (0, 0, 1))
    assert_equal(one, again)
    assert not torch.equal(one.transformer.h[0].mlp.c_fc.weight, other.transformer.h[0].mlp.c_fc.weight)


def test_padding_counts_nowhere() -> None:
    """What stands in padded places changes nothing of what is learnt."""
    found = []
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    for filler in (2, 50):
        batches = [
            {"input_ids": batch["input_ids"].masked_fill(mask == 0, filler), "attention_mask": mask}
            for batch in BATCHES
        ]
        model = tiny.ann("bert_mlm")
        train_blocks(model, tiny.ann("bert_mlm"), CONFIG, batches, BlockOptions(steps=3))
        found.append(model)
    for name, value in found[0].state_dict().items():
        torch.testing.assert_close(value, found[1].state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_prefix_is_found_from_disk_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token is massive (as in test_prefix): the search runs block by block and ends with the same tokens."""
    ann = tiny.ann("gpt2")
    first = ann.transformer.h[0]
    with torch.no_grad():
        for table in (ann.transformer.wte.weight, ann.transformer.wpe.weight, first.attn.c_proj.weight):
            table[:, :2] = 0
        first.attn.c_proj.bias[:2] = 0
        first.ln_2.bias[:2] = 0
        ann.transformer.wpe.weight[0, :2] = torch.tensor([100.0, -100.0])
        first.mlp.c_fc.weight[:2] = torch.tensor([[3000.0], [-3000.0]])
    monkeypatch.setattr(massive, "_loss", lambda *_: 0.0)  # of a random model it means nothing
    config = CONFIG.replaced(prefix="auto")
    folder = saved(ann, tmp_path / "ann")
    found = prefix_search_from_disk(folder, config, BATCHES)
    assert found is not None
    assert found.before.is_massive
    assert found.tokens
    train_blocks_folder(folder, tmp_path / "out", config, BATCHES, BlockOptions(steps=1))
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prepared = fas.prepare(ann, config, BATCHES)
    assert clock_of(read).config.prefix == clock_of(prepared).config.prefix == found.tokens
    constants = {name: value for name, value in prepared.state_dict().items() if ".prefix." in name}
    assert len(constants) == 4
    for name, value in constants.items():  # one step has moved them a little
        torch.testing.assert_close(read.state_dict()[name], value, rtol=0, atol=1e-3)


class Killed(BaseException):
    pass


class KillAt(Silent):
    def __init__(self, step: int) -> None:
        self.left, self.notes, self.said = step, list[str](), list[str]()

    def note(self, text: str) -> None:
        self.said.append(text)

    def advance(self, parts: int = 1, note: str = "") -> None:
        self.notes.append(note)
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("disk", [False, True])
def test_interrupted_it_ends_with_the_same_bits(tmp_path: Path, disk: bool) -> None:
    folder = saved(tiny.ann("gpt2"), tmp_path / "ann")

    def run(progress: KillAt) -> tuple[PreTrainedModel, list[BlockReport]]:
        if disk:
            reports = train_blocks_folder(folder, tmp_path / "out", CONFIG, BATCHES, OPTIONS, progress)
            return AutoModelForCausalLM.from_pretrained(tmp_path / "out"), reports
        model, _, reports = trained("gpt2", CONFIG, work=tmp_path / "work", progress=progress)
        return model, reports

    with pytest.raises(Killed):
        run(KillAt(OPTIONS.steps + 3))
    assert not (tmp_path / "out").exists()
    later = KillAt(99)
    model, reports = run(later)
    assert later.notes[0] == "block 0 was trained before the interruption"
    assert len(later.notes) == 1 + OPTIONS.steps
    whole, _, wanted = trained("gpt2", CONFIG)
    assert reports == wanted
    assert_equal(model, whole)
    assert sorted(file.name for file in (tmp_path / "work").rglob("*")) == ([] if disk else KEPT)


KEPT = ["blocks", "transformer.0.safetensors", "transformer.1.safetensors"]


def test_blocks_of_another_training_are_refused(tmp_path: Path) -> None:
    trained("gpt2", CONFIG, work=tmp_path)
    for config, options in ((CONFIG, BlockOptions(steps=9)), (CONFIG.replaced(levels=5), OPTIONS)):
        with pytest.raises(CheckpointError, match="another model, data, options or versions"):
            trained("gpt2", config, options, work=tmp_path)
    (tmp_path / "blocks" / "transformer.0.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        trained("gpt2", CONFIG, work=tmp_path)


def test_a_checkpoint_of_the_inner_model_is_read(tmp_path: Path) -> None:
    """As GPT-2 lies on the hub: names without the inner model's, one of two tied weights."""
    folder = saved(tiny.ann("gpt2"), tmp_path / "ann")
    inner = saved(tiny.ann("gpt2").transformer, tmp_path / "inner")
    shutil.copy(folder / "config.json", inner)
    for place in (folder, inner):
        train_blocks_folder(place, tmp_path / f"{place.name}-out", CONFIG, BATCHES, BlockOptions(steps=1))
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-out") for name in ("ann", "inner"))
    assert_equal(one, other)


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    folder = saved(tiny.ann("gpt2"), tmp_path / "ann")

    def refused(
        kind: type[FasError], match: str, place: Path = folder, out: str = "out", batches: Any = BATCHES
    ) -> None:
        with pytest.raises(kind, match=match):
            train_blocks_folder(place, tmp_path / out, CONFIG, batches, OPTIONS)

    refused(DataError, "at least one", batches=[])
    refused(ConfigError, "exists already", out="ann")
    refused(ConfigError, "inside", out="ann/deeper")
    refused(CheckpointError, "no local folder", place=tmp_path / "nowhere")
    refused(CheckpointError, "converted already", place=saved(tiny.snn("gpt2"), tmp_path / "snn"))
    assert not list(tmp_path.glob("*.work"))
    seeing, batch = [tiny_vl.ann("llava") for _ in range(2)], tiny_vl.batch("llava")
    with pytest.raises(FasError, match=r"several parts \(.*stage1='full'"):
        train_blocks(*seeing, fas.SpikingConfig(), [batch], OPTIONS)
    with pytest.raises(ConfigError, match="causal decoders"):
        trained("bert_mlm", CONFIG.replaced(prefix=(3,)))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    del weights["transformer.h.1.mlp.c_fc.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    refused(CheckpointError, r"no model\.safetensors")


SMALL: dict[str, Any] = {
    "levels": 4, "timesteps": (2,), "stage1": "blocks", "stage1_steps": 3, "batch_size": 2, "length": 16, "lr": 1e-3,
    "calibration_sequences": 4, "fit_steps": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("blocks")
    return {"model": folders.save_ann(root / "ann"), "data": folders.save_text(root / "text.txt"), "root": root}


def options_at(place: dict[str, Any], out: str, **more: Any) -> ConvertOptions:
    return ConvertOptions(model=place["model"], data=place["data"], out=place["root"] / out, **SMALL | more)


def test_a_conversion_in_memory_and_from_disk_ends_the_same(place: dict[str, Any]) -> None:
    in_memory = options_at(place, "memory", eval_sequences=2)
    results = run_conversion(in_memory)
    assert [row.name for row in results.rows] == ["ann", "control", "qcfs", "snn", "snn"]
    assert results.extra["control"]["chosen"] == "ann"
    command = ["convert", "--model", place["model"], "--data", place["data"], "--out", str(place["root"] / "disk")]
    command += ["--levels", "4", "--timesteps", "2", "--stage1", "blocks", "--stage1-steps", "3", "--batch-size", "2"]
    command += [
        "--length",
        "16",
        "--lr",
        "0.001",
        "--calibration-sequences",
        "4",
        "--fit-steps",
        "0",
        "--from-disk",
        "-q",
    ]
    assert main(command) == 0
    one, other = (load_spiking(str(place["root"] / name))[0] for name in ("memory", "disk"))
    assert_equal(one, other)
    assert clock_of(one).config == clock_of(other).config
    written = Results.read(place["root"] / "disk" / "results.json")
    assert [block["name"] for block in written.extra["blocks"]] == ["transformer.0", "transformer.1"]
    assert len(written.extra["layer_errors"]["sigma_delta_2_1"]) == 2
    assert not list(place["root"].glob("disk.*"))
    assert main(command) == 2  # it exists
    assert main(["eval", str(place["root"] / "disk"), "--eval-sequences", "2", "--quiet"]) == 0


def test_fine_tuning_follows(place: dict[str, Any]) -> None:
    """Then the control is fine-tuned, too, and what stands outside of the blocks moves."""
    results = run_conversion(
        options_at(place, "tuned", stage1_finetune_steps=4, distill=0.5, stage2=False, eval_sequences=2)
    )
    assert "fine_tuned_held_out_loss" in results.extra["control"]
    plain, tuned = (load_spiking(str(place["root"] / name))[0].transformer for name in ("memory", "tuned"))
    assert not torch.equal(plain.wte.weight, tuned.wte.weight)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"distill": 0.5}, "add stage1_finetune_steps"),
        ({"spikes_per_neuron": 1.0}, "add stage1_finetune_steps"),
        ({"fsdp": True}, "one block at a time; leave it out"),
        ({"stage1": "full", "stage1_finetune_steps": 3}, "follow stage1='blocks'"),
        ({"from_disk": True, "stage1": "full"}, "choose stage1='blocks'"),
        ({"from_disk": True, "timesteps": (2, 4)}, "one coding and one number"),
        ({"from_disk": True, "before_stage2": True}, "before_stage2 needs the whole model"),
        ({"stage1_sequences": 0}, "at least 1"),
    ],
)
def test_options_without_effect_are_refused(place: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options_at(place, "refused", **more)


def test_from_disk_without_stage_1_and_2_only_scales_are_fitted(place: dict[str, Any]) -> None:
    from fas.pipeline.from_disk import convert_from_disk

    more = {"stage1": "none", "stage1_steps": None, "from_disk": True, "stage2": False}
    asked = options_at(place, "scales", **more)
    results = convert_from_disk(asked, Silent())
    assert all(block["before"] == block["after"] for block in results.extra["blocks"])
    model, _ = load_spiking(str(asked.out))
    ann = AutoModelForCausalLM.from_pretrained(place["model"])
    assert torch.equal(model.transformer.h[1].mlp.c_fc.weight, ann.transformer.h[1].mlp.c_fc.weight)
    assert clock_of(model).stage == "snn"


LIMITED = """
import sys, torch
import fas
from fas.training import BlockOptions, train_blocks_folder
torch.set_num_threads(1)
batches = [{"input_ids": torch.randint(3, 60, (2, 16), generator=torch.Generator().manual_seed(s))} for s in range(3)]
config = fas.SpikingConfig(coverage="linear", levels=4, timesteps=2, prefix=())
train_blocks_folder(sys.argv[1], sys.argv[2], config, batches, BlockOptions(steps=2))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # ru_maxrss outlives exec
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is Linux's")
def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    """Of 6, 12 and 24 layers of 1.8 M parameters; 7 MB of weights a layer."""
    peaks = {}
    for layers in (6, 12, 24):
        ann = tiny.ann("gpt2", n_layer=layers, n_embd=384, n_head=8)
        folder = saved(ann, tmp_path / f"ann-{layers}")
        del ann
        out = str(tmp_path / f"out-{layers}")
        strict = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        command = [sys.executable, "-c", LIMITED, str(folder), out]
        found = subprocess.run(command, capture_output=True, text=True, env=os.environ | strict)
        assert found.returncode == 0, found.stderr
        peaks[layers] = int(found.stdout.split()[-1]) / 1024
        shutil.rmtree(out)
    print(peaks)
    assert max(peaks.values()) < peaks[6] + 7, peaks  # of 18 layers more, less than the weights of one


def child(folder: Path) -> None:
    """What the killed process runs."""
    train_blocks_folder(folder / "ann", folder / "out", CONFIG, BATCHES, BlockOptions(steps=20))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked")
def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL at random moments, each time anew, and from nothing where it came through before."""
    saved(tiny.ann("gpt2", n_layer=4), tmp_path / "ann")
    chance, kills = random.Random(0), 0
    whole, seconds = run_through(tmp_path, None)
    assert whole is not None
    while kills < 10:
        found, _ = run_through(tmp_path, chance.uniform(0.05, 0.6) * seconds)
        kills += found is None
        assert found is None or same(found, whole)
    found, _ = run_through(tmp_path, None)
    assert found is not None
    assert same(found, whole)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def run_through(folder: Path, patience: float | None) -> tuple[dict[str, torch.Tensor] | None, float]:
    """The weights that came out, which are put away, and how long it took; None if patience (seconds) ended."""
    start = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=child, args=(folder,))
    process.start()
    process.join(patience)
    if process.exitcode is None:
        process.kill()  # SIGKILL
        process.join()
        return None, 0
    assert process.exitcode == 0
    seconds = time.monotonic() - start
    found = {
        name: value
        for file in (folder / "out").glob("*.safetensors")
        for name, value in load(file.read_bytes()).items()
    }
    assert "transformer.h.3.sites.ffn_input.log_scale" in found
    shutil.rmtree(folder / "out")
    return found, seconds
