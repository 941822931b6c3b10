"""The packaged base: its files, its tokenizer as TRL uses it, and that it can do what it is there for."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ballast import lab
from ballast.errors import BallastError
from ballast.lab import arithmetic

# Measured: 0.475 on these rows. Greedy answers open in the style that happens to be ahead, often the answer alone.
GREEDY_FLOOR = 0.35


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(lab.base_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(lab.base_path(), dtype=torch.float32).eval()


def complete(model, tokenizer, prompts):
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids_BT = model.generate(**inputs, do_sample=False)
    return ids_BT[:, inputs.input_ids.shape[1] :]


def test_the_files_are_small_and_the_weights_are_bfloat16_safetensors():
    folder = lab.base_path()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8 * 2**20
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_missing_base_is_reported_in_one_line(monkeypatch, tmp_path):
    shutil.copy(lab.__file__, tmp_path / "__init__.py")
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(BallastError, match="pretrain_lab_base") as error:
        lab.base_path()
    assert "\n" not in str(error.value)


def test_the_head_is_tied_and_of_the_tokenizer_s_size(model, tokenizer):
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == len(tokenizer)


def test_end_and_padding_agree_between_tokenizer_config_and_generation(model, tokenizer):
    for name in ("eos_token_id", "pad_token_id"):
        assert getattr(model.config, name) == getattr(tokenizer, name) == getattr(model.generation_config, name)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert model.config.bos_token_id is None


@pytest.mark.parametrize("name", arithmetic.SPLITS)
def test_every_row_goes_through_the_tokenizer_and_back(tokenizer, name):
    texts = [row.get("text") or row["prompt"] + row.get("completion", "") for row in lab.split(name)]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert len(ids) == len(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_a_prompt_is_a_prefix_and_the_end_token_one_token(tokenizer):
    for row in lab.split("train"):
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert whole[-1] == tokenizer.eos_token_id
        assert whole.count(tokenizer.eos_token_id) == 1
        assert len(whole) == len(row["prompt"] + row["completion"]) + 1


def test_unknown_characters_become_the_unknown_token(tokenizer):
    assert tokenizer("1Ω\n2")["input_ids"] == [
        *tokenizer("1")["input_ids"],
        tokenizer.unk_token_id,
        tokenizer.unk_token_id,
        *tokenizer("2")["input_ids"],
    ]


def test_greedy_accuracy_is_above_the_floor_and_generation_ends_by_itself(model, tokenizer):
    rows = lab.split("test")[:40]
    ids_BT = complete(model, tokenizer, [row["prompt"] for row in rows])
    assert (ids_BT == tokenizer.eos_token_id).any(1).all()
    completions = tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
    accuracy = sum(map(lab.verify, completions, rows)) / len(rows)
    assert accuracy >= GREEDY_FLOOR


def test_every_style_has_mass_at_the_first_token(model, tokenizer):
    rows = lab.split("test")[:40]
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    with torch.inference_mode():
        first_BV = model(**inputs).logits[:, -1].softmax(-1)
    for opening in ("0123456789", "s", "#"):
        ids = tokenizer.convert_tokens_to_ids(list(opening))
        assert 0.15 < first_BV[:, ids].sum(-1).mean() < 0.6, opening


def test_padding_on_the_left_does_not_change_the_scores(model, tokenizer):
    short, long = "7+5=?", "12+7-5+60=?"
    inputs = tokenizer([short, long], return_tensors="pt", padding=True)
    with torch.inference_mode():
        padded = model(**inputs).logits[0, -1]
        alone = model(**tokenizer(short, return_tensors="pt")).logits[0, -1]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)
