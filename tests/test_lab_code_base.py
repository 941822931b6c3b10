"""The base of the code tasks: its files, its tokens, and that it half knows what it is there for."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ballast import lab, models
from ballast.config.recipe import ModelSection
from ballast.lab import code_tasks

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import pretrain_lab_code_base as script


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(lab.base_path("lab-code"))


def test_a_recipe_names_it_lab_code():
    assert models.resolve(ModelSection(path="lab-code")).path == str(lab.base_path("lab-code"))
    assert models.resolve(ModelSection(path="lab")).path == str(lab.base_path())


def test_the_files_are_small_and_the_weights_are_bfloat16_safetensors():
    folder = lab.base_path("lab-code")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2 * 2**20
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}


def test_its_vocabulary_is_that_of_the_script(tokenizer):
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert tokens[3:] == script.vocabulary()


@pytest.mark.parametrize("name", code_tasks.SPLITS)
def test_every_row_goes_through_the_tokenizer_and_back(tokenizer, name):
    for row in lab.split(name):
        text = row.get("text") or row["prompt"] + row.get("completion", "")
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        if "completion" in row:
            prompt = tokenizer(row["prompt"])["input_ids"]
            assert ids[: len(prompt)] == prompt
            assert len(ids) <= 128


def test_it_writes_programs_that_run_and_half_knows_the_steps(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(lab.base_path("lab-code"), dtype=torch.float32).eval()
    rows = lab.split("code-atoms")[:: 3 * len(code_tasks.WORDINGS)]
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True, padding_side="left")
    with torch.inference_mode():
        ids_BT = model.generate(**inputs, do_sample=False)[:, inputs.input_ids.shape[1] :]
    answers = tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
    assert sum(map(code_tasks.answered, answers, rows)) / len(rows) > 0.9
    assert 0.2 < sum(map(code_tasks.verify, answers, rows)) / len(rows) < 0.9
