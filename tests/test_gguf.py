"""GGUF files as models: the same numbers as the weights they were written from, once for each content, or one line."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ballast import gguf, models
from ballast.cli import app
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.gguf import unpack
from ballast.pipeline.digests import inputs_of
from tiny import CHAT_TEMPLATE, tiny_model

pytest.importorskip("gguf")
from gguf import GGMLQuantizationType, GGUFWriter

TOKENS = ["<unk>", "<s>", "</s>", "<end>", *map(chr, range(33, 127)), "Ġ", "Ċ", "ab"]
CONTROL, NORMAL = 3, 1
TYPES = {"F32": GGMLQuantizationType.F32, "F16": GGMLQuantizationType.F16}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def model(**changes):
    return tiny_model(vocab=len(TOKENS), hidden=32, heads=4, **changes)


def gguf_name(name: str) -> str:
    """Return a weight's name in a file, as llama.cpp's converter has it."""
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    fixed["lm_head.weight"] = "output.weight"
    if name in fixed:
        return fixed[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of a query or key projection in llama.cpp's order, which turns neighbours and not halves."""
    rows, columns = weights.shape
    return weights.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def write(
    path: Path, source, *, kind="F32", tokens=True, architecture="llama", drop=(), end="eos", more=lambda _: None
):
    """Write a Llama and its tokenizer into a GGUF file, as llama.cpp's converter does."""
    writer, config = GGUFWriter(path, architecture), source.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_license("apache-2.0")
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([CONTROL] * 4 + [NORMAL] * (len(TOKENS) - 4))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eot_token_id(3)
        if end == "eos":
            writer.add_eos_token_id(2)
        writer.add_chat_template(CHAT_TEMPLATE)
    more(writer)
    for name, weights in source.state_dict().items():
        if (name == "lm_head.weight" and config.tie_word_embeddings) or gguf_name(name) in drop:
            continue
        if ".q_proj." in name or ".k_proj." in name:
            weights = interleaved(weights, config.num_attention_heads)
        values = weights.float().numpy()
        # Vectors stay in full, as converters leave them.
        writer.add_tensor(gguf_name(name), values.astype("float16") if kind == "F16" and values.ndim > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    return tmp_path


def loaded(path: str):
    section = models.resolve(ModelSection(path=path))
    return models.load_model(section), models.load_tokenizer(section)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_logits_are_those_of_the_weights_it_was_written_from(place, kind, tied):
    source = model(tied=tied)
    write(place / "m.gguf", source, kind=kind)
    if kind == "F16":
        for weights in source.parameters():
            weights.data = weights.data.half().float() if weights.ndim > 1 else weights.data
    found, _ = loaded("m.gguf")
    ids = torch.randint(0, len(TOKENS), (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (found(ids).logits - source(ids).logits).abs().max() == 0
    assert found.dtype == torch.float32
    assert found.config.tie_word_embeddings is tied


def test_template_end_tokens_licence_and_digest_are_set(place):
    write(place / "m.gguf", model())
    found, tokenizer = loaded("m.gguf")
    section = models.resolve(ModelSection(path="m.gguf"))
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert found.generation_config.eos_token_id == [2, 3]
    assert tokenizer("hi").input_ids == [TOKENS.index("h"), TOKENS.index("i")]
    assert len(tokenizer) == len(TOKENS)  # transformers adds one of GPT-2's, for which the model has no row
    assert models.licence(section) == "apache-2.0"
    sha256 = gguf.digest("m.gguf")
    assert Path(section.path).name == sha256
    assert "`m.gguf`" in Path(section.path, "README.md").read_text()
    (record,) = inputs_of(Recipe(model=ModelSection(path="m.gguf"))).values()
    assert (record.source, record.digest) == ("m.gguf", sha256)


def test_where_no_text_ends_a_turns_end_does(place):
    write(place / "m.gguf", model(), end="eot")
    found, tokenizer = loaded("m.gguf")
    assert (tokenizer.eos_token, found.generation_config.eos_token_id) == ("<end>", 3)


def test_a_file_is_unpacked_once_by_content(place, monkeypatch):
    write(place / "a.gguf", model())
    first = gguf.unpacked("a.gguf")
    shutil.copy("a.gguf", "b.gguf")
    unpack._made.cache_clear()
    unpack._digest.cache_clear()
    monkeypatch.setattr(unpack, "convert", None)
    monkeypatch.setattr(unpack, "check_header", None)
    assert gguf.unpacked("b.gguf") == first
    # Neither is a large file read again for its digest.
    unpack._digest.cache_clear()
    unpack._made.cache_clear()
    monkeypatch.setattr(unpack, "digest_of", None)
    assert gguf.unpacked("a.gguf") == first
    assert sorted(one.suffix for one in first.parent.iterdir() if one.is_file()) == [".json", ".json", ".lock"]


def test_another_file_under_the_name_is_another_model(place):
    write(place / "m.gguf", model())
    first = gguf.unpacked("m.gguf")
    write(place / "m.gguf", model(seed=1))
    assert gguf.unpacked("m.gguf") != first


def test_a_folder_that_is_gone_names_its_file(place):
    """As the base of an adapter that was trained on it, say."""
    write(place / "m.gguf", model())
    folder = gguf.unpacked("m.gguf")
    shutil.rmtree(folder)
    said = str(models.check_folder(str(folder)))
    assert (
        said
        == f"{folder}: was unpacked from a GGUF and is gone; to unpack it again name the file as model once: "
        + (str(place / "m.gguf"))
    )
    assert models.check_folder(str(folder.with_name("other"))) is not None


def _unpack_there(path: str) -> str:
    return str(gguf.unpacked(path))


def test_two_processes_unpack_one_folder(place):
    write(place / "m.gguf", model())
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        assert len(set(pool.map(_unpack_there, ["m.gguf", "m.gguf"]))) == 1
    assert gguf.problem("m.gguf") is None


def test_nothing_half_written_stays(place, monkeypatch):
    write(place / "m.gguf", model())
    root = place / "cache" / "gguf"

    def full(*_, **__):
        Path(root, f"{gguf.digest('m.gguf')}.part", "x").parent.mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpack, "convert", full)
    assert "No space left on device" in str(gguf.problem("m.gguf"))
    assert [one.name for one in root.iterdir() if one.is_dir()] == []


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


BAD = {
    "no file": (lambda path: None, "no such file; a GGUF is read from this disk alone"),
    "other content": (lambda path: path.write_text("{}"), "is not a GGUF file"),
    "empty": (lambda path: path.write_bytes(b""), "is not a GGUF file"),
    "cut in its weights": (lambda path: (write(path, model()), cut(path, 0.7)), "is cut short or damaged"),
    "cut in its header": (lambda path: (write(path, model()), cut(path, 0.05)), "is cut short or damaged"),
    "architecture": (
        lambda path: write(path, model(), architecture="rwkv6"),
        "transformers cannot read a GGUF of the architecture 'rwkv6'",
    ),
    "encoder": (lambda path: write(path, model(), architecture="t5"), "transformers cannot read|no causal language"),
    "no tokenizer": (lambda path: write(path, model(), tokens=False), "has no tokenizer in it"),
    "adapter": (
        lambda path: write(path, model(), more=lambda writer: writer.add_type("adapter")),
        "holds an adapter, no model; .* model.adapter",
    ),
    "split by its header": (
        lambda path: write(path, model(), more=lambda writer: writer.add_uint16("split.count", 3)),
        "is one of 3 parts, .* llama-gguf-split --merge",
    ),
    "missing weights": (
        lambda path: write(path, model(), drop=("blk.1.attn_v.weight",)),
        "lacks the weights 'model.layers.1.self_attn.v_proj.weight'",
    ),
    "long positions": (
        lambda path: write(
            path, model(), more=lambda writer: writer.add_tensor("rope_factors_long.weight", torch.ones(4).numpy())
        ),
        "stretches its positions by rope_factors_long.weight",
    ),
    "strange positions": (
        lambda path: write(
            path, model(), more=lambda writer: writer.add_tensor("rope_freqs.weight", torch.arange(1.0, 5.0).numpy())
        ),
        "in another way than Llama 3.1",
    ),
    "vocabulary alone": (
        lambda path: write(path, model(), drop=[gguf_name(name) for name in model().state_dict()]),
        "holds no weights, a vocabulary alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_model_is_refused_in_one_line(place, case):
    make, message = BAD[case]
    make(place / "m.gguf")
    with pytest.raises(BallastError, match=rf"m\.gguf: .*{message}") as raised:
        models.load_config(models.resolve(ModelSection(path="m.gguf")))
    assert "\n" not in str(raised.value)
    assert models.check_folder("m.gguf") == str(raised.value)
    assert not [one for one in place.glob("cache/gguf/*") if one.is_dir()]


def test_names_tell_before_anything_is_read(place, monkeypatch):
    for address in ("https://example.org/m.gguf", "org/repo/m.gguf"):
        assert "download it first" in str(models.check_folder(address))
    write(place / "m-00001-of-00003.gguf", model())
    assert "is one of 3 parts" in str(models.check_folder("m-00001-of-00003.gguf"))
    write(place / "n.gguf", model())
    assert "holds the GGUF m-00001-of-00003.gguf and 1 more, each" in str(models.check_folder(str(place)))
    monkeypatch.setenv("BALLAST_CACHE", "off")
    assert "BALLAST_CACHE switches off; set it" in str(models.check_folder("n.gguf"))


def test_a_file_that_cannot_be_read_is_one_line(place, monkeypatch):
    write(place / "m.gguf", model())

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(unpack, "digest_of", denied)
    assert str(gguf.problem("m.gguf")).startswith("m.gguf: cannot be read or unpacked: Permission denied; ")


def test_without_the_package_the_extra_is_named(place, monkeypatch):
    write(place / "m.gguf", model())
    monkeypatch.setattr("ballast.packages.find_spec", lambda name: None)
    assert "pip install 'ballast-ft[gguf]'" in str(gguf.problem("m.gguf"))


def test_a_full_disk_is_seen_before_anything_is_unpacked(place, monkeypatch):
    write(place / "m.gguf", model())
    monkeypatch.setattr("ballast.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
    assert "cannot be unpacked: " in (said := str(gguf.problem("m.gguf")))
    assert "the disk is full" in said


def test_stretched_positions_of_llama_3_are_kept(place):
    """Against transformers' own model of such a configuration, whose divisors are written as llama.cpp does."""
    stretched = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 8192, "rope_theta": 500_000.0}  # fmt: skip
    source = model(rope_parameters=stretched)
    plain = 1 / 500_000.0 ** (torch.arange(0, 8, 2).float() / 8)
    divisors = plain / source.model.rotary_emb.inv_freq
    assert divisors.max() == pytest.approx(8)
    write(place / "m.gguf", source, more=lambda writer: writer.add_tensor("rope_freqs.weight", divisors.numpy()))
    found, _ = loaded("m.gguf")
    ids = torch.randint(0, len(TOKENS), (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (found(ids).logits - source(ids).logits).abs().max() < 1e-4
    assert found.config.rope_parameters["rope_type"] == "llama3"


def test_a_recipe_names_the_file_and_its_line(place):
    Path("recipe.yaml").write_text("model: m.gguf\ndata: {train: lab:train}\nobjective: sft\noutput: out\n")
    Path("m.gguf").write_text("no")
    done = CliRunner().invoke(app, ["train", "recipe.yaml", "--dry-run"])
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "recipe.yaml:1: model: m.gguf: is not a GGUF file: it does not begin with GGUF; name another, or a folder"
    ]


def test_a_run_from_a_file_records_the_file(place):
    write(place / "m.gguf", model())
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"{n}", "completion": "ok"}) + "\n" for n in range(8)))
    words = ["model=m.gguf", "data.train=rows.jsonl", "objective=sft", "output=out", "training.max_steps=1"]
    done = CliRunner().invoke(app, ["train", *words, "training.per_device_train_batch_size=4"])
    assert done.exit_code == 0, done.output
    record = json.loads(Path("out/run.json").read_text())
    assert record["recipe"]["model"]["path"] == record["inputs"]["model"]["source"] == "m.gguf"
    assert record["inputs"]["model"]["digest"] == gguf.digest("m.gguf")
    card = Path("out/README.md").read_text()
    assert "| base | `m.gguf`: llama" in card
    assert "license: apache-2.0" in card
    assert "base_model" not in card
