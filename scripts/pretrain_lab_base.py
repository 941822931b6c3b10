"""Pretrain the lab's tiny base model from nothing and write it to src/ballast/lab/base.

    python scripts/pretrain_lab_base.py --steps 3000 --log docs/lab_base_log.json

The same seed gives the same text; weights agree up to the rounding of the machine's matrix products.
"""

import argparse
import json
import math
import string
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ballast.lab.arithmetic import STYLES, draw_text, held_out

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
CHARACTERS = string.digits + "+-=?;#. " + string.ascii_lowercase
LENGTH_WEIGHTS = {2: 0.25, 3: 0.35, 4: 0.35, 5: 0.05}
CONTEXT = 256


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, no beginning token, so that a prompt is always a prefix of prompt plus completion."""
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNK, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS, UNK])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def fresh_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A Llama with tied embeddings and random weights, in float32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=128
    )
    return model


def batches(tokenizer: PreTrainedTokenizerFast, rng: Random, rows: int, parts: int) -> Iterator[list[torch.Tensor]]:
    """Yield one step's rows as ``parts`` padded id matrices [rows/parts, T], sorted by length to save padding."""
    exclude = held_out()
    while True:
        texts = [draw_text(rng, list(STYLES), LENGTH_WEIGHTS, exclude) + EOS for _ in range(rows)]
        ids = sorted(tokenizer(texts)["input_ids"], key=len)
        size = math.ceil(rows / parts)
        yield [_pad(ids[start : start + size], tokenizer.pad_token_id) for start in range(0, rows, size)]


def _pad(ids: list[list[int]], pad: int) -> torch.Tensor:
    width = max(map(len, ids))
    return torch.tensor([row + [pad] * (width - len(row)) for row in ids])


def summed_loss(model: LlamaForCausalLM, ids_BT: torch.Tensor, pad: int) -> torch.Tensor:
    """Sum of the next-token losses (nats) of the whole rows; padding, which stands on the right, counts nothing."""
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), ignore_index=pad, reduction="sum"
    )


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then cosine to 2 % of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100))))


def pretrain(options: argparse.Namespace) -> None:
    """Train, save the model (bfloat16) and tokenizer to ``options.out``, and the log to ``options.log``."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    tokenizer = character_tokenizer()
    model = fresh_model(tokenizer, options.hidden, options.layers, options.heads)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=0.0, betas=(0.9, 0.98)
    )
    stream = batches(tokenizer, Random(f"pretraining {options.seed}"), options.rows, options.parts)
    curve: list[dict] = []
    started, window, counted = time.monotonic(), 0.0, 0
    for step in range(options.steps):
        parts = next(stream)
        tokens = sum(int((part[:, 1:] != tokenizer.pad_token_id).sum()) for part in parts)
        for part in parts:
            loss = summed_loss(model, part, tokenizer.pad_token_id)
            (loss / tokens).backward()
            window += loss.item()
        counted += tokens
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options.steps, options.lr)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            point = {"step": step + 1, "loss": round(window / counted, 4), "seconds": round(time.monotonic() - started)}
            curve.append(point)
            print(json.dumps(point), flush=True)
            window, counted = 0.0, 0
        if options.save_every and (step + 1) % options.save_every == 0:
            save(model, tokenizer, options.out)
    save(model, tokenizer, options.out)
    write_log(options, model, curve)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a bfloat16 copy of the model, and the tokenizer; the weights being trained stay float32."""
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.config.dtype = torch.bfloat16
    copy.save_pretrained(out)
    model.config.dtype = torch.float32
    tokenizer.save_pretrained(out)


def write_log(options: argparse.Namespace, model: LlamaForCausalLM, curve: list[dict]) -> None:
    """Write settings, size and loss curve (mean nats per token over the last 100 steps) as JSON."""
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "log", "save_every")}
    log = {
        "settings": settings | {"length_weights": LENGTH_WEIGHTS, "styles": list(STYLES)},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
        "curve": curve,
    }
    lines = json.dumps(log, indent=1).replace("\n   ", " ").replace("\n  }", " }")
    options.log.write_text(lines + "\n")


def main() -> None:
    """Parse the command line and pretrain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("src/ballast/lab/base"))
    parser.add_argument("--log", type=Path, default=Path("docs/lab_base_log.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=64, help="rows of one step")
    parser.add_argument("--parts", type=int, default=2, help="forward passes of one step, rows sorted by length")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--hidden", type=int, default=160)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=0, help="also save every so many steps")
    pretrain(parser.parse_args())


if __name__ == "__main__":
    main()
