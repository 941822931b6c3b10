"""Pretrain the lab's tiny base model from nothing and write it to src/ballast/lab/base.

    python scripts/pretrain_lab_base.py --log docs/lab_base_log.json

The same seed gives the same text; weights agree up to the rounding of the machine's matrix products.
"""

import argparse
import json
import math
import string
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ballast.lab.arithmetic import STYLES, draw_text, held_out

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
CHARACTERS = string.digits + "+-=?;#. " + string.ascii_lowercase
LENGTHS = {2: 0.25, 3: 0.35, 4: 0.35, 5: 0.05}
# The terms of a problem are random: their loss cannot fall below chance and mostly adds noise to the gradient.
PROMPT_WEIGHT = 0.1
CONTEXT = 256


def closed_tokenizer(tokens: Iterable[str], pattern: str) -> PreTrainedTokenizerFast:
    """Each match of a pattern is a token, or unknown. No beginning token, so that a prompt is always a prefix."""
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNK, *tokens])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
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


def batches(
    tokenizer: PreTrainedTokenizerFast, draw: Callable[[Random], str], options: argparse.Namespace
) -> Iterator[list[torch.Tensor]]:
    """Yield each step's rows as ``parts`` padded id matrices [rows/parts, T], sorted by length to save padding."""
    rng = Random(f"pretraining {options.seed}")
    for _ in range(options.steps):
        texts = [draw(rng) + EOS for _ in range(options.rows)]
        ids = sorted(tokenizer(texts)["input_ids"], key=len)
        size = math.ceil(options.rows / options.parts)
        yield [_pad(ids[start : start + size], tokenizer.pad_token_id) for start in range(0, options.rows, size)]


def _pad(ids: list[list[int]], pad: int) -> torch.Tensor:
    width = max(map(len, ids))
    return torch.tensor([row + [pad] * (width - len(row)) for row in ids])


def token_weights(ids_BT: torch.Tensor, pad: int, mark: int) -> torch.Tensor:
    """Weights of the targets [B, T-1]: `PROMPT_WEIGHT` up to the mark that ends a prompt, 1 after it, 0 on padding."""
    targets_BT = ids_BT[:, 1:]
    is_mark_BT = targets_BT == mark
    in_prompt_BT = is_mark_BT.cumsum(1) - is_mark_BT.long() == 0
    return torch.where(in_prompt_BT, PROMPT_WEIGHT, 1.0) * (targets_BT != pad)


def summed_loss(model: LlamaForCausalLM, ids_BT: torch.Tensor, weights_BT: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the next-token losses in nats; padding stands on the right, so that causality alone masks it."""
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits.float()
    loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
    return (loss * weights_BT.flatten()).sum()


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over a sixth of the steps, at most 150, then cosine to 2 % of the peak."""
    warmup = min(150, max(1, steps // 6))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def pretrain(
    options: argparse.Namespace,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[Random], str],
    mark: str,
    text: dict[str, object],
) -> None:
    """Train, save the model (bfloat16) and tokenizer to ``options.out``, and the log to ``options.log``.

    Args:
        draw: one row of text, prompt and completion.
        mark: the token that ends a prompt.
        text: what the log says of the text.
    """
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    if options.start is None:
        model = fresh_model(tokenizer, options.hidden, options.layers, options.heads)
    else:
        model = LlamaForCausalLM.from_pretrained(options.start, dtype=torch.float32)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=0.0, betas=(0.9, 0.98)
    )
    pad, end = tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids(mark)
    curve: list[dict] = []
    started, window, counted = time.monotonic(), 0.0, 0.0
    for step, parts in enumerate(batches(tokenizer, draw, options)):
        weights = [token_weights(part, pad, end) for part in parts]
        total = sum(part.sum().item() for part in weights)
        for part, weights_BT in zip(parts, weights, strict=True):
            loss = summed_loss(model, part, weights_BT)
            (loss / total).backward()
            window += loss.item()
        counted += total
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options.steps, options.lr)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            point = {"step": step + 1, "loss": round(window / counted, 4), "seconds": round(time.monotonic() - started)}
            curve.append(point)
            print(json.dumps(point), flush=True)
            window, counted = 0.0, 0.0
        if options.save_every and (step + 1) % options.save_every == 0:
            save(model, tokenizer, options.out)
    save(model, tokenizer, options.out)
    write_log(options, model, curve, text)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a bfloat16 copy of the model, and the tokenizer; the weights being trained stay float32."""
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.config.dtype = torch.bfloat16
    copy.save_pretrained(out)
    model.config.dtype = torch.float32
    tokenizer.save_pretrained(out)


def write_log(options: argparse.Namespace, model: LlamaForCausalLM, curve: list[dict], text: dict[str, object]) -> None:
    """Write settings, size and loss curve (weighted mean nats per token over 100 steps) as JSON."""
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "log", "save_every", "start")}
    log = {
        "settings": settings | {"prompt_weight": PROMPT_WEIGHT} | text,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
    }
    points = ",\n  ".join(json.dumps(point) for point in curve)
    head = json.dumps(log, indent=1).removesuffix("\n}")
    options.log.write_text(f'{head},\n "curve": [\n  {points}\n ]\n}}\n')


def parser(about: str, out: str, log: str) -> argparse.ArgumentParser:
    """Return the command line; the defaults are those of the arithmetic base."""
    found = argparse.ArgumentParser(description=about)
    found.add_argument("--out", type=Path, default=Path(out))
    found.add_argument("--log", type=Path, default=Path(log))
    found.add_argument("--start", type=Path, default=None, help="folder of a model to go on from; none: random weights")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--steps", type=int, default=900)
    found.add_argument("--rows", type=int, default=64, help="rows of one step")
    found.add_argument("--parts", type=int, default=2, help="forward passes of one step, rows sorted by length")
    found.add_argument("--lr", type=float, default=1.5e-3)
    found.add_argument("--hidden", type=int, default=160)
    found.add_argument("--layers", type=int, default=4)
    found.add_argument("--heads", type=int, default=5)
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--save-every", type=int, default=0, help="also save every so many steps")
    return found


def main() -> None:
    """Parse the command line and pretrain."""
    options = parser(__doc__.splitlines()[0], "src/ballast/lab/base", "docs/lab_base_log.json").parse_args()
    styles, exclude = list(STYLES), held_out()
    pretrain(
        options,
        closed_tokenizer(CHARACTERS, r"[\s\S]"),
        lambda rng: draw_text(rng, styles, LENGTHS, exclude),
        "?",
        {"lengths": LENGTHS, "styles": styles},
    )


if __name__ == "__main__":
    main()
