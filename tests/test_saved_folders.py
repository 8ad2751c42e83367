"""What a saved folder holds, what loading it checks, and what becomes of it without FAS."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

import fas
from fas.cli import main
from fas.conversion import files
from fas.conversion.manifest import write_manifest
from fas.errors import CheckpointError, DataError, FasError, UnsupportedModelError
from fas.models.family import REGISTRY
from fas.pipeline.load import load_ann, load_spiking


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny.snn("gpt2").save_pretrained(tmp_path / "snn")
    folders.save_tokenizer(tmp_path / "snn")
    return tmp_path / "snn"


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


WITHOUT_FAS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fas":
            raise ImportError("there is no fas here")
sys.meta_path.insert(0, Blocked())
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2LMHeadModel, pipeline
folder = sys.argv[1]
print(AutoConfig.from_pretrained(folder).model_type)
loads = [AutoModelForCausalLM.from_pretrained, AutoModel.from_pretrained, GPT2LMHeadModel.from_pretrained]
for load in [*loads, lambda place: pipeline("text-generation", model=place)]:
    try:
        load(folder)
        print("loaded")
    except Exception as error:
        print("this is a spiking network: `import fas`" in str(error))
"""


def test_without_fas_transformers_refuses_the_folder_and_says_why(saved: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_FAS, str(saved)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gpt2", *["True"] * 4]


def test_with_fas_every_door_opens(saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved)
    assert config.quantization_config["quant_method"] == "fas"
    model = AutoModelForCausalLM.from_pretrained(saved, config=config)
    assert "transformers_weights" not in model.config.to_dict()
    assert pipeline("text-generation", model=str(saved))("w1 w2", max_new_tokens=2)


def test_changes_through_the_api_are_written_down(saved: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    model.set_timesteps(2)
    fas.calibrate(model, [{"input_ids": tiny.tokens()}])
    model.resize_token_embeddings(tiny.VOCAB + 3)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "a", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(saved).save_pretrained(tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    assert main(["verify", str(tmp_path / "a")]) == 0
    again, _ = load_spiking(str(tmp_path / "a"), "cpu")
    assert again.dtype == torch.bfloat16
    assert again.config.quantization_config.spiking["timesteps"] == 2


def test_another_tokenizer_is_taken_from_the_api_only(saved: Path) -> None:
    other = AutoTokenizer.from_pretrained(saved)
    other.add_tokens(["new"])
    text = (saved / "tokenizer.json").read_text()
    (saved / "tokenizer.json").write_text(text.replace('"w1"', '"v1"'))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json was changed after it was saved"):
        AutoModelForCausalLM.from_pretrained(saved)
    other.save_pretrained(saved)
    AutoModelForCausalLM.from_pretrained(saved)
    other.add_tokens([f"more{i}" for i in range(9)])
    other.save_pretrained(saved)
    with pytest.raises(CheckpointError, match=r"a tokenizer of .* words and a model of 97"):
        load_spiking(str(saved), "cpu")


def test_a_folder_of_fas_01_loads(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["quantization_config"]["digest"], config["transformers_weights"]
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "fas_manifest.json").unlink()
    load_spiking(str(saved), "cpu")
    assert main(["verify", str(saved)]) == 2


def test_an_edit_names_the_key_and_the_remedy(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"]["spiking"]["timesteps"] = 2
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"spiking\.timesteps is 2 and was 4; .*model\.set_timesteps\(timesteps=…\)"
    ):
        AutoModelForCausalLM.from_pretrained(saved)


def test_verify_names_every_tensor_that_is_damaged(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = bytearray((saved / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (saved / "model.safetensors").write_bytes(bytes(raw))
    assert main(["verify", str(saved)]) == 1
    assert "transformer.wte.weight has other values than were saved" in capsys.readouterr().out


def test_large_checkpoints_are_checked_at_their_neurons(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fas.conversion.integrity.ALL_BYTES", 0)
    values = load_file(saved / "model.safetensors")
    values["transformer.wte.weight"][0, 0] += 1
    save_file(values, saved / "model.safetensors", metadata={"format": "pt"})
    AutoModelForCausalLM.from_pretrained(saved)
    values["transformer.h.0.sites.ffn_input.log_scale"][0] += 1
    save_file(values, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="ffn_input"):
        AutoModelForCausalLM.from_pretrained(saved)


def test_a_control_is_checked_too(saved: Path) -> None:
    folders.save_ann(saved / "control")
    write_manifest(saved / "control")
    load_ann(str(saved / "control"), "cpu")
    raw = bytearray((saved / "control" / "model.safetensors").read_bytes())
    raw[-3] ^= 1
    (saved / "control" / "model.safetensors").write_bytes(bytes(raw))
    assert main(["verify", str(saved)]) == 1
    with pytest.raises(CheckpointError, match=r"control/model\.safetensors is damaged"):
        load_ann(str(saved / "control"), "cpu")


def test_a_qcfs_folder_is_no_snn(tmp_path: Path) -> None:
    tiny.qcfs_model("gpt2").save_pretrained(tmp_path)
    folders.save_tokenizer(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a QCFS model, which has no spikes yet; .*fas\.convert"):
        load_spiking(str(tmp_path), "cpu")


@pytest.mark.parametrize("target", ["../x.safetensors", "/tmp/x.safetensors", "C:\\x.safetensors"])
def test_an_index_that_leaves_its_folder_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        files.weight_files(tmp_path)


# The original model


@pytest.mark.parametrize(
    ("change", "message"), [({"n_layer": 1}, r"holds 1\d weights .*first transformer\.h\.1"), ({"n_layer": 3}, "lacks")]
)
def test_layers_that_config_and_weights_do_not_share_are_refused(
    change: dict[str, int], message: str, tmp_path: Path
) -> None:
    folders.save_ann(tmp_path)
    edit(tmp_path / "config.json", **change)
    with pytest.raises(FasError, match=message):
        load_ann(str(tmp_path), "cpu")


def test_biases_that_the_configuration_has_no_place_for_are_refused(tmp_path: Path) -> None:
    folders.save_ann(tmp_path, "llama")
    edit(tmp_path / "config.json", attention_bias=False, mlp_bias=False)
    with pytest.raises(CheckpointError, match=r"holds 14 weights .*first model\.layers\.0\.mlp\.down_proj\.bias"):
        load_ann(str(tmp_path), "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_stop_every_verb(value: float, tmp_path: Path) -> None:
    model = tiny.ann("gpt2")
    name = "transformer.h.1.mlp.c_fc.weight"
    model.get_parameter(name).data[2, 3] = value
    with pytest.raises(CheckpointError, match=rf"{name} is not finite \({value} at \[2, 3\], 1 of"):
        fas.prepare(model, fas.SpikingConfig(), [{"input_ids": tiny.tokens()}])
    qcfs = tiny.qcfs_model("gpt2")
    qcfs.get_parameter(name).data[2, 3] = value
    with pytest.raises(CheckpointError, match=name):
        fas.convert(qcfs)
    snn = tiny.snn("gpt2")
    snn.get_parameter(name).data[2, 3] = value
    with pytest.raises(CheckpointError, match=name):
        fas.calibrate(snn, [{"input_ids": tiny.tokens()}])
    model.save_pretrained(tmp_path)
    folders.save_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=name):
        load_ann(str(tmp_path), "cpu")


def test_activations_that_overflow_name_the_first_layer() -> None:
    model = tiny.ann("gpt2")
    model.get_parameter("transformer.h.1.mlp.c_proj.weight").data.fill_(3e38)
    with pytest.raises(DataError, match=r"output of transformer\.h\.1\.mlp\.c_proj \(Conv1D\) is not finite on the"):
        fas.prepare(model, fas.SpikingConfig(), [{"input_ids": tiny.tokens()}])
    assert not any("sites" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("text", ["null", "[1]", "", "[" * 100_000, '{"model_type": 3}', '{"architectures": 3}'])
@pytest.mark.parametrize("command", [["inspect"], ["convert", "--data", "text", "--out", "out"]])
def test_odd_configurations_are_one_line(
    text: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(text)
    given = (
        [command[0], "--model", str(tmp_path), *command[1:]] if command[0] == "convert" else [*command, str(tmp_path)]
    )
    assert main(given) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fas: error")]
    assert "unforeseen" not in line
    assert not line.endswith(":")


def test_code_of_a_model_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.save_ann(tmp_path)
    (tmp_path / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit(tmp_path / "config.json", model_type="mine", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"})
    for command in (
        ["inspect", str(tmp_path)],
        ["convert", "--model", str(tmp_path), "--data", "text", "--out", str(tmp_path / "o")],
    ):
        assert main(command) == 2
        assert "a model with code of its own (auto_map in its config.json)" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_norm_that_is_unknown_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class CohereLayerNorm(torch.nn.LayerNorm):
        pass

    model = tiny.ann("llama")
    model.model.layers[0].input_layernorm = CohereLayerNorm(32)
    family = REGISTRY["LlamaModel"]
    monkeypatch.setitem(REGISTRY, "LlamaModel", replace(family, analog=family.analog | {"CohereLayerNorm"}))
    batch = [{"input_ids": tiny.tokens()}]
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.0\.input_layernorm is a CohereLayerNorm.*coverage='attention'"
    ):
        fas.prepare(model, fas.SpikingConfig(coverage="full"), batch)


def test_training_that_diverges_stops_and_says_so() -> None:
    from fas.tasks.language_modeling import Blocks
    from fas.training import Stage1Options, fine_tune

    examples = Blocks(tiny.tokens(8, 9))
    with pytest.raises(FasError, match=r"training diverged: the loss of step \d is (nan|inf)"):
        fine_tune(tiny.ann("gpt2"), examples, Stage1Options(steps=6, batch_size=2, lr=1e30, warmup=0.0))


def test_a_trainers_checkpoint_with_its_tokenizer_loads(saved: Path, tmp_path: Path) -> None:
    """Its logs and the user's notes are read by nobody."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    row = {"input_ids": tiny.tokens()[0], "labels": tiny.tokens()[0]}
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=1, save_steps=1, per_device_train_batch_size=1, report_to=[], use_cpu=True
    )
    Trainer(model, arguments, train_dataset=[row], processing_class=tokenizer).train()
    place = tmp_path / "run" / "checkpoint-1"
    assert (place / "trainer_state.json").exists()
    (place / "all_results.json").write_text("{}")
    (place / "notes.txt").write_text("mine")
    again, _ = load_spiking(str(place), "cpu")
    assert torch.equal(again(tiny.tokens()).logits, model.eval()(tiny.tokens()).logits)
    assert main(["verify", str(place)]) == 0


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("sites", {"a": "b"}), ("sites", {"a": True}), ("neurons", [1]), ("neurons", ["../../x"]), ("order", [3]),
        ("prefix", {"0": "x"}), ("prefix", {"seven": [1, 2, 3]}), ("prefix", {"0": [1, 2]}), ("prefix", {"0": [1, 2, -3]}),
    ],
)  # fmt: skip
def test_entries_of_another_kind_are_refused_in_folders_without_manifest(
    saved: Path, entry: str, value: object
) -> None:
    (saved / "fas_manifest.json").unlink()
    description = json.loads((saved / "config.json").read_text())["quantization_config"]
    del description["digest"]
    edit(saved / "config.json", quantization_config=description | {entry: value})
    with pytest.raises(CheckpointError, match=r"the checkpoint's description has .* where .* is expected"):
        AutoModelForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize("load", [load_ann, load_spiking])
def test_weights_that_git_has_not_fetched_are_called_so(saved: Path, tmp_path: Path, load: Any) -> None:
    place = saved if load is load_spiking else Path(folders.save_ann(tmp_path / "ann"))
    (place / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a pointer of Git LFS and not the weights"):
        load(str(place), "cpu")
