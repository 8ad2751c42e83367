"""``fas generate``: text from the spiking model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.options import Adaptive, AsJson, Converted, Device, DType, IntegerBits, MemoryLimit, Quiet, Seed

NAME = "generate"
EXAMPLE = 'fas generate gpt2-snn --prompt "The list type" --sample --temperature 0.8'

_SAMPLING = "With --sample"


def command(
    folder: Converted,
    prompt: Annotated[str, typer.Option(help="Text to go on from, or a question about the image.")],
    image: Annotated[
        Path | None, typer.Option(help="Of a vision-language model: what it sees.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 64,
    sample: Annotated[bool, typer.Option("--sample/--greedy", help="Draw tokens, or take the likeliest.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1: safer, above 1: wilder.", rich_help_panel=_SAMPLING, show_default="1")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from this share.", rich_help_panel=_SAMPLING, show_default="1")
    ] = None,
    num_beams: Annotated[int, typer.Option(help="Width of the beam search; 1 searches none.")] = 1,
    timesteps: Annotated[int | None, typer.Option(help="T.", show_default="as saved, the best measured")] = None,
    coding: Annotated[str | None, typer.Option(help="rate or sigma_delta.", show_default="as converted")] = None,
    cache: Annotated[str, typer.Option(help="exact, or settled: T times smaller, past tokens spike once.")] = "exact",
    adaptive: Adaptive = False,
    confidence: Annotated[
        float | None, typer.Option(help="A token also stops when so probable (0 to 1); no cache.", show_default=False)
    ] = None,
    ann: Annotated[bool, typer.Option("--ann", help="Also let the control, its fine-tuned original, write.")] = False,
    memory_limit: MemoryLimit = None,
    integer_bits: IntegerBits = 0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DType = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Let the spiking model continue a text; spikes per neuron go to standard error."""
    from fas.cli.session import print_json, session

    with session(quiet) as progress:
        from fas.pipeline.generate import Decoding, continue_text
        from fas.pipeline.load import load_ann, load_spiking
        from fas.pipeline.measure import chosen_stopping

        decoding = Decoding(max_new_tokens, sample, temperature, top_p, num_beams, seed)
        model, tokenizer = load_spiking(str(folder), device, dtype, any_task=image is not None)
        model.set_timesteps(timesteps, cache=cache, **({"coding": coding.replace("-", "_")} if coding else {}))
        stopping = chosen_stopping(model, confidence) if adaptive or confidence is not None else None
        written = continue_text(model, tokenizer, prompt, decoding, stopping, image, memory_limit, integer_bits)
        answer: dict[str, Any] = {"model": str(folder), "decoding": decoding.to_dict(), **written.to_dict()}
        as_saved = " (T as it was saved; --timesteps chooses another)" if timesteps is None else ""
        progress.note(written.summary() + as_saved)
        if ann:
            control = folder / "control"
            if control.is_dir():
                answer["control"] = continue_text(
                    *load_ann(str(control), device, dtype or "float32", any_task=True),
                    prompt,
                    decoding,
                    image=image,
                    limit=memory_limit,
                ).to_dict()
            else:
                progress.note(f"note: {control} does not exist, so only the SNN writes")
    if as_json:
        print_json(answer)
    elif "control" in answer:
        print(f"SNN:\n{prompt}{written.text}\n\ncontrol:\n{prompt}{answer['control']['text']}")
    else:
        print(f"{prompt}{written.text}")
