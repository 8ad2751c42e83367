"""Train the embedded model from scratch: ``python scripts/train_builtin.py [--freeze-text] [--steps N] [--start DIR]``.

Two phases: with dropout, then ``--finish`` steps without, after which fine-tuning gains little more, so that a conversion is
compared with a converged model. ``--start`` takes the model after the first phase from a folder.

Writes the tokenizer and the model (fp16 weights) to ``src/fas/builtin/model`` and, with ``--freeze-text``, the evaluation
text of this interpreter to ``src/fas/builtin/evaluation.txt``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from fas.tasks import builtin

PACKAGE = Path(__file__).parents[1] / "src" / "fas" / "builtin"


def freeze_text() -> None:
    documents = [text for name, text in builtin.documents_of_this_python() if builtin.is_evaluation(name)]
    PACKAGE.mkdir(parents=True, exist_ok=True)
    (PACKAGE / "evaluation.txt").write_text(f"\n{builtin.SEPARATOR}\n".join(documents) + "\n", encoding="utf-8")


def train_tokenizer(documents: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[builtin.SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    end = builtin.SEPARATOR
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, model_max_length=context
    )


def stream(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    ids: list[int] = []
    for encoded in tokenizer(documents)["input_ids"]:
        ids += [*encoded, tokenizer.eos_token_id]
    return torch.tensor(ids)


def scratch(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> GPT2LMHeadModel:
    drop = args.dropout
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=args.context, n_embd=192, n_layer=4, n_head=6,
        resid_pdrop=drop, embd_pdrop=drop, attn_pdrop=drop, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def perplexity(model: GPT2LMHeadModel, ids: torch.Tensor, length: int) -> float:
    model.eval()
    blocks = ids[: len(ids) // length * length].view(-1, length)
    with torch.no_grad():
        losses = [model(input_ids=b, labels=b).loss.item() * len(b) for b in blocks.split(32)]
    model.train()
    return math.exp(sum(losses) / len(blocks))


def train(
    model: GPT2LMHeadModel, ids: torch.Tensor, evaluation: torch.Tensor, steps: int, lr: float, args: argparse.Namespace
) -> None:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(args.seed)
    start = time.time()
    for step in range(1, steps + 1):
        offsets = torch.randint(len(ids) - args.length, (args.batch,), generator=generator)
        batch = torch.stack([ids[o : o + args.length] for o in offsets.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % args.report == 0 or step == steps:
            value = perplexity(model, evaluation[:20_000], args.length)
            print(f"step {step} loss {loss.item():.3f} perplexity {value:.2f} {time.time() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--freeze-text", action="store_true")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--finish", type=int, default=400)
    parser.add_argument("--finish-lr", type=float, default=3e-4)
    parser.add_argument("--start", type=Path, help="folder with the model after the first phase")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--report", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.freeze_text:
        freeze_text()
    set_seed(args.seed)
    torch.set_float32_matmul_precision("medium")
    documents = builtin.training_documents()
    if args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
    else:
        tokenizer = train_tokenizer(documents, args.vocabulary, args.context)
    ids, evaluation = stream(tokenizer, documents), stream(tokenizer, builtin.evaluation_documents())
    print(f"{len(documents)} documents, {len(ids)} training and {len(evaluation)} evaluation tokens", flush=True)
    model = GPT2LMHeadModel.from_pretrained(args.start, dtype=torch.float32) if args.start else scratch(tokenizer, args)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    if not args.start:
        train(model, ids, evaluation, args.steps, args.lr, args)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(model.config, name, 0.0)  # fine-tuning a trained model for a few hundred steps needs no dropout
    train(model, ids, evaluation, args.finish, args.finish_lr, args)
    earlier = {"start": json.loads((args.start / "training.json").read_text())} if args.start else {}
    model.half().save_pretrained(PACKAGE / "model")
    tokenizer.save_pretrained(PACKAGE / "model")
    provenance = {"command": sys.argv, "torch": torch.__version__, "python": sys.version.split()[0]}
    (PACKAGE / "model" / "training.json").write_text(
        json.dumps(provenance | vars(args) | earlier, indent=1, default=str) + "\n"
    )


if __name__ == "__main__":
    main()
