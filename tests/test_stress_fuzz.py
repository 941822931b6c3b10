"""Random rows, recipes, bytes and records: used rightly, or refused in one line; never a traceback or silently wrong.

The default run tries a few of each; ``-m slow`` hundreds.
"""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ballast.config.recipe import load_recipe
from ballast.data import PrepareOptions, prepare
from ballast.data.load import load_rows
from ballast.errors import BallastError
from report_records import comparison
from report_records import run as recorded
from stress import LAB, VERIFIER, run
from tiny import CHAT_TEMPLATE, char_tokenizer

FEW, MANY = 12, 300
SHARED = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}
text = st.text(st.characters(codec=None), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | values, "content": text | values}
)
columns = {
    "prompt": text | values | st.lists(message, max_size=2),
    "completion": text | values | st.lists(message, max_size=2),
    "messages": st.lists(message, max_size=3) | values,
    "text": text | values,
    "other": values,
}
row = st.sets(st.sampled_from(sorted(columns)), min_size=1).flatmap(
    lambda names: st.fixed_dictionaries({name: columns[name] for name in sorted(names)})
)


def refused(act):
    """Return what came out, None where it was refused in one line."""
    try:
        return act()
    except BallastError as error:
        return None if str(error).strip() else pytest.fail("an error without a word")


def fuzzed(examples):
    return settings(max_examples=examples, **SHARED)


SIZES = [pytest.param(FEW), pytest.param(MANY, marks=pytest.mark.slow)]


@pytest.mark.parametrize("examples", SIZES)
def test_rows(examples, tmp_path):
    tokenizer = char_tokenizer(chat_template=CHAT_TEMPLATE)

    @fuzzed(examples)
    @given(st.lists(row, min_size=1, max_size=3))
    def check(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        loaded = refused(lambda: load_rows(str(path)))
        if loaded is None:
            return
        names = {name for one in rows for name in one}
        assert as_json(list(loaded)) == as_json([{name: one.get(name) for name in names} for one in rows])
        made = refused(lambda: prepare(loaded, tokenizer, PrepareOptions(max_length=64), name="rows"))
        for one in made.dataset if made is not None else ():
            assert len(one["input_ids"]) == len(one["labels"])
            assert tokens_of(rows, tokenizer, one["input_ids"])

    check()


def as_json(value):
    """Numbers by their kind, NaN equal to itself."""
    return json.dumps(value, sort_keys=True)


def tokens_of(rows, tokenizer, ids):
    """Whether tokens are those of one of the rows; of chats the template has a say."""
    if any("messages" in row or isinstance(row.get("prompt"), list) for row in rows):
        return True
    texts = [row["text"] if "text" in row else row["prompt"] + row["completion"] for row in rows]
    ended = [text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token for text in texts]
    return ids in [tokenizer(text)["input_ids"][:64] for text in ended]


RECIPE = {
    "model": {"path": "lab"},
    "data": {"train": "lab:train", "limit": 8},
    "objective": {"name": "prift-mass"},
    "reference": {"cache": "cache"},
    "training": {"max_steps": 2, "learning_rate": 1e-3},
    "evaluation": {"tasks": [{"name": "t", "kind": "nll", "data": "lab:test"}]},
    "rl": {"verifier": VERIFIER, "steps": 2},
    "compare": {"objectives": ["sft"], "rates": [1e-3], "seeds": 1},
    "output": "out",
    "seed": 3,
}


def places(value, where=()):
    """Yield the path of everything in plain data."""
    yield where
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*where, key))


def with_change(value, where, new):
    """Return plain data with the value at a path replaced."""
    if not where:
        return new
    made = json.loads(json.dumps(value))
    place = made
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = new
    return made


@pytest.mark.parametrize("examples", SIZES)
def test_recipes(examples, tmp_path):
    @fuzzed(examples)
    @given(st.sampled_from(list(places(RECIPE))), values)
    def check(where, new):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(with_change(RECIPE, where, new)))
        recipe = refused(lambda: load_recipe(path, ()))
        if recipe is not None:
            (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
            assert load_recipe(tmp_path / "resolved.yaml", ()) == recipe

    check()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A reference cache and a folder of groups."""
    folder = tmp_path_factory.mktemp("stored")
    groups = f"groups={{verifier: '{VERIFIER}', own: 2, max_new_tokens: 4, file: {folder}/groups}}"
    cache = f"reference.cache={folder}/cache"
    for words in (("score", "objective=prift-mass", cache), ("sample", "objective=gft", groups)):
        done = run(words[0], *LAB, *words[1:])
        assert done.exit_code == 0, (done.output, done.exception)
    return folder


def read_cache(folder):
    from ballast.reference import ReferenceCache

    cache = ReferenceCache.open(folder)
    digests = [digest.tobytes().hex() for digest in cache._digests]
    return {one: {name: values.tobytes() for name, values in cache.lookup(one).items()} for one in digests}


def read_stored_groups(folder):
    from ballast import models
    from ballast.config.recipe import ModelSection
    from ballast.groups.read import read_groups

    return read_groups(folder, models.load_tokenizer(models.resolve(ModelSection(path="lab"))))


READERS = {"cache": read_cache, "groups": read_stored_groups}


@pytest.mark.parametrize("examples", SIZES)
@pytest.mark.parametrize("kind", READERS)
def test_bytes_of_stored_values(kind, examples, stored, tmp_path):
    read, whole = READERS[kind], READERS[kind](stored / kind)
    files = sorted(path.name for path in (stored / kind).iterdir() if path.stat().st_size)

    @fuzzed(examples)
    @given(st.sampled_from(files), st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.booleans())
    def check(name, place, flip, cut):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(stored / kind, copy)
        content = bytearray((copy / name).read_bytes())
        at = int(place * len(content))
        content[at] ^= flip
        (copy / name).write_bytes(content[:at] if cut else content)
        found = refused(lambda: read(copy))
        assert found is None or found == whole

    check()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    recorded(folder / "run")
    comparison(folder / "compare", seeds=1, tuning_seeds=1)
    return folder


FILES = {"run": ("run.json", "evals.jsonl", "metrics.jsonl"), "compare": ("summary.json", "compare.json")}


@pytest.mark.parametrize("examples", SIZES)
@pytest.mark.parametrize("kind", FILES)
def test_records(kind, examples, records, tmp_path):
    from ballast.report import write_report

    copy = tmp_path / "copy"
    shutil.copytree(records / kind, copy)

    @fuzzed(examples)
    @given(st.data(), st.sampled_from(FILES[kind]))
    def check(data, name):
        path = copy / name
        original = path.read_bytes()
        first, *rest = original.split(b"\n") if name.endswith("l") else [original]
        plain = json.loads(first)
        where = data.draw(st.sampled_from(list(places(plain))))
        changed = json.dumps(with_change(plain, where, data.draw(values))).encode()
        try:
            path.write_bytes(b"\n".join([changed, *rest]))
            refused(lambda: write_report([copy], output=tmp_path / "page"))
        finally:
            path.write_bytes(original)

    check()
