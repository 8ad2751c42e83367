"""Real processor classes of vision-language families, built locally: one code for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shapes import part, script

import fas
from fas.tasks.pictures import Pictures
from fas.tasks.vision_language import ImageTexts, asked, prompt_of
from fas.tasks.visual import Seen, read_part


def _idefics3(rows: list[Seen]) -> tuple[Any, Any]:
    """With tiles: an image becomes four and the whole."""
    from tiny_vl import MODELS
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    tiles = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    tokenizer = script().tokenizer_of(rows)
    marks = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    images = Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    cls, config, settings, *_ = MODELS["idefics3"]
    text = settings["text_config"] | {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    settings = settings | {"text_config": text, "image_token_id": tokenizer.convert_tokens_to_ids("<image>")}
    return cls(config(**settings)), Idefics3Processor(images, tokenizer, image_seq_len=4)


def _blip2(rows: list[Seen]) -> tuple[Any, Any]:
    from tiny_vl import MODELS
    from transformers import Blip2Processor, BlipImageProcessor

    tokenizer = script().tokenizer_of(rows)
    cls, config, settings, *_ = MODELS["blip2"]
    number = tokenizer.convert_tokens_to_ids("<image>")
    settings = settings | {"image_token_index": number, "image_token_id": number}
    images = BlipImageProcessor(size={"height": 12, "width": 12})
    return cls(config(**settings)), Blip2Processor(images, tokenizer, num_query_tokens=4)


def _llava15(rows: list[Seen]) -> tuple[Any, Any]:
    """As llava-hf/llava-1.5-7b-hf has it: images are cropped, and questions go through a chat template."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    made = script()
    processor = made.processor_of(rows, 16, 4)
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
    )
    images = CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    chatting = LlavaProcessor(
        images, processor.tokenizer, patch_size=4, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    assert prompt_of(chatting, "is it red?") == "USER: <image>\nis it red? ASSISTANT:"
    return made.untrained(processor, 16, 4, 32, 1), chatting


@pytest.mark.parametrize("made", [_idefics3, _blip2, _llava15])
def test_real_processors(made: Any, tmp_path: Path) -> None:
    """Batches for training and calibration, exact match, and generation of the SNN, by each family's own processor."""
    rows = read_part("vqa", part(tmp_path / "shapes", 6))
    torch.manual_seed(0)
    ann, processor = made(rows)
    examples = ImageTexts(rows, Pictures(processor))
    loss = ann.eval()(**examples.collate([examples[number] for number in range(4)])).loss
    assert torch.isfinite(loss)
    dense = examples.evaluate(ann, 4)
    alone = examples.evaluate(ann, 1)
    assert dense.loss == pytest.approx(alone.loss, rel=1e-4)
    snn = fas.convert(fas.prepare(ann, fas.SpikingConfig(levels=15, timesteps=8), examples.for_calibration(8, 4)))
    assert examples.evaluate_spiking(snn, 8).spikes.per_neuron > 0.1  # type: ignore[union-attr]
    inputs = asked(processor, rows[0].image, rows[0].question, snn.config)
    with torch.no_grad():
        cached, uncached = (
            snn.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=use) for use in (True, False)
        )
    assert torch.equal(cached, uncached)
    assert len(fas.ledger(snn, examples.unpadded(2)[0]).parts) >= 3


@torch.no_grad()
def test_images_of_fewer_tiles_share_a_batch(tmp_path: Path) -> None:
    """Idefics3 cuts a wide image into two tiles and a square one into four; each sees what it sees alone."""
    rows = read_part("vqa", part(tmp_path / "shapes", 4))[:3]
    Image.new("RGB", (16, 8), (30, 200, 40)).save(rows[2].image)
    torch.manual_seed(0)
    ann, processor = _idefics3(rows)
    examples = ImageTexts(rows, Pictures(processor))
    square, wide = examples[0], examples[2]
    assert (square["pixel_values"].shape[1], wide["pixel_values"].shape[1]) == (5, 3)
    batch = examples.collate([square, wide])
    labels = batch.pop("labels")
    together = ann.eval()(**batch).logits
    for number, alone in enumerate((square, wide)):
        wanted = ann(**{name: value for name, value in alone.items() if name != "labels"}).logits[0]
        torch.testing.assert_close(together[number, : len(wanted)], wanted, atol=1e-4, rtol=1e-4)
        assert (labels[number, len(wanted) :] == -100).all()
