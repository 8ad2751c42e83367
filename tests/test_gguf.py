"""GGUF files as models: an ordinary folder comes of one, and what is none is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fas.cli import main
from fas.errors import CheckpointError, FasError
from fas.pipeline.gguf import folder_of, gguf_file_of
from fas.pipeline.load import load_ann, resolve

gguf = pytest.importorskip("gguf")
WORDS = ["<unk>", "<s>", "</s>", *[f"▁w{number}" for number in range(29)]]
WIDTH, HIDDEN, LAYERS, HEADS, SHARED = 32, 64, 2, 4, 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(path: Path, architecture: str = "llama") -> Path:
    """A tiny model of random weights, as llama.cpp's converter would write it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([-float(place) for place in range(len(WORDS))])
    writer.add_token_types([2, 3, 3, *[1] * (len(WORDS) - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    generator = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, generator.normal(0, 0.3, shape).astype(np.float32))

    add("token_embd.weight", len(WORDS), WIDTH)
    add("output.weight", len(WORDS), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        for name, rows in (("attn_q", WIDTH), ("attn_k", WIDTH // 2), ("attn_v", WIDTH // 2), ("attn_output", WIDTH)):
            add(f"blk.{layer}.{name}.weight", rows, WIDTH)
        for name, shape in (("ffn_gate", (HIDDEN, WIDTH)), ("ffn_up", (HIDDEN, WIDTH)), ("ffn_down", (WIDTH, HIDDEN))):
            add(f"blk.{layer}.{name}.weight", *shape)
        add(f"blk.{layer}.attn_norm.weight", WIDTH)
        add(f"blk.{layer}.ffn_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_ordinary_folder_comes_of_it(tmp_path: Path) -> None:
    file = written(tmp_path / "tiny.gguf")
    folder = folder_of(file)
    ann, tokenizer = load_ann(str(file))
    ids = torch.arange(3, 12)[None]
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(ann(ids).logits, wanted(ids).logits)
    assert getattr(ann.config, "quantization_config", None) is None
    assert AutoTokenizer.from_pretrained(folder)("w3 w4")["input_ids"] == tokenizer("w3 w4")["input_ids"]
    changed = (folder / "config.json").stat().st_mtime_ns
    assert resolve(str(tmp_path)) == str(folder)  # its folder is as good, and it is not converted twice
    assert (folder / "config.json").stat().st_mtime_ns == changed


def test_a_command_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(written(tmp_path / "tiny.gguf")), "--quiet"]) == 0
    assert "LlamaForCausalLM, family llama" in capsys.readouterr().out


def test_what_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"odd.gguf cannot be loaded as a causal language model: .*kestrel"):
        folder_of(written(tmp_path / "odd.gguf", "kestrel"))
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"no such thing" * 50)
    with pytest.raises(CheckpointError, match=r"garbage\.gguf cannot be loaded"):
        folder_of(garbage)
    with pytest.raises(FasError, match=r"holds 2 GGUF files \(garbage.gguf, odd.gguf\); name one of them"):
        gguf_file_of(str(tmp_path))
    assert main(["inspect", str(garbage), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


def test_folders_and_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "beside.gguf").touch()
    for model in (str(tmp_path), "owner/name", "builtin", str(tmp_path / "none.gguf")):
        assert gguf_file_of(model) is None
