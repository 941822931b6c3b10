"""Measure a model on the lab's problems: greedy accuracy, sampled pass@1 and pass@8, and the shares of its styles.

python scripts/measure_lab_base.py --terms 3 4 5 --rows 300
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ballast import lab

OPENINGS = {"steps": "0123456789", "words": "s", "answer": "#"}


def complete(model, tokenizer, prompts: list[str], sample: bool, batch: int = 400) -> list[str]:
    """Complete each prompt, greedily or by sampling at temperature 1 from the whole vocabulary."""
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    completions = []
    for start in range(0, len(prompts), batch):
        inputs = tokenizer(prompts[start : start + batch], return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids_BT = model.generate(**inputs, max_new_tokens=112, **how)
        completions += tokenizer.batch_decode(ids_BT[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return completions


def measure(model, tokenizer, terms: int, rows: int, seed: int) -> dict:
    """Return the figures of one length; pass@8 is the share of problems with a right one among exactly 8 samples."""
    problems = lab.problems(seed, rows, terms=terms)
    prompts = [row["prompt"] for row in problems]
    greedy = complete(model, tokenizer, prompts, sample=False)
    torch.manual_seed(seed)
    samples = complete(model, tokenizer, [prompt for prompt in prompts for _ in range(8)], sample=True)
    scores = torch.tensor([lab.verify(text, problems[i // 8]) for i, text in enumerate(samples)]).view(rows, 8)
    styles = {
        style: round(sum(text[:1] in opening for text in samples if text) / len(samples), 3)
        for style, opening in OPENINGS.items()
    }
    return {
        "terms": terms,
        "greedy": round(sum(map(lab.verify, greedy, problems)) / rows, 3),
        "pass@1": round(scores.mean().item(), 3),
        "pass@8": round(scores.amax(1).mean().item(), 3),
        "sampled styles": styles,
    }


def main() -> None:
    """Parse the command line, measure, print one line for each length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None, help="folder of a model; the packaged base when left out")
    parser.add_argument("--terms", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seed", type=int, default=99)
    options = parser.parse_args()
    path = options.model or lab.base_path()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for terms in options.terms:
        print(measure(model, tokenizer, terms, options.rows, options.seed), flush=True)


if __name__ == "__main__":
    main()
