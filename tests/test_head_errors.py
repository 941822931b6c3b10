"""What `token_stats` refuses, and the sentence it says."""

import pytest
import torch

from ballast import token_stats
from ballast.head import LMHead
from head_inputs import inputs

CASES = {
    "unknown field": ({"fields": ("logprobs",)}, "unknown field 'logprobs'"),
    "a string for fields": ({"fields": "logprob"}, "unknown field 'l'"),
    "a field of the rows": ({"fields": ("advantage",)}, "'advantage' comes from the rows"),
    "a field of the collator": ({"fields": ("position",)}, "'position' comes from the rows"),
    "kl without reference": ({"fields": ("kl",), "reference": None}, "'kl' needs `reference`"),
    "ref without reference": ({"fields": ("ref_mass",), "reference": None}, "'ref_mass' needs `reference`"),
    "backend": ({"backend": "fast"}, "unknown backend 'fast'"),
    "chunk": ({"backend": "chunked", "chunk": 0}, "chunk must be at least 1 row, got 0"),
    "hidden of three dimensions": ({"hidden": torch.zeros(1, 5, 3)}, r"expected hidden \[N, H\]"),
    "targets of two dimensions": ({"targets": torch.zeros(5, 1, dtype=torch.long)}, r"expected hidden \[N, H\]"),
    "fewer targets": ({"targets": torch.zeros(4, dtype=torch.long)}, r"\[5, 3\] and \[4\]"),
    "hidden size": ({"hidden": torch.zeros(5, 4)}, r"hidden size 4 does not fit an LM head of \[7, 3\]"),
    "reference's rows": ({"reference": (torch.zeros(4, 3), torch.zeros(7, 3))}, r"\[4, 3\] and \[5\]"),
    "reference's size": ({"reference": (torch.zeros(5, 2), torch.zeros(7, 3))}, "hidden size 2 does not fit"),
    "vocabularies": ({"reference": (torch.zeros(5, 3), torch.zeros(8, 3))}, r"differ \(7 and 8 rows\).*vocab_size"),
    "vocab_size": ({"vocab_size": 8}, "vocab_size 8 exceeds a vocabulary of 7 rows"),
    "vocab_size 0": ({"vocab_size": 0}, "vocab_size 0"),
    "ignored target": ({"targets": torch.tensor([0, 1, -100, 2, 3])}, "ignored positions are to be left out"),
    "target outside": ({"targets": torch.tensor([0, 1, 7, 2, 3])}, r"targets must lie in \[0, 7\)"),
    "bias twice": ({"weight": LMHead(torch.zeros(7, 3)), "bias": torch.zeros(7)}, "brings its own bias"),
    "softcap twice": ({"weight": LMHead(torch.zeros(7, 3)), "softcap": 3.0}, "brings its own bias"),
    "scale twice": ({"weight": LMHead(torch.zeros(7, 3)), "scale": 2.0}, "brings its own bias"),
}


@pytest.mark.parametrize(("changes", "message"), list(CASES.values()), ids=list(CASES))
def test_refused(changes, message):
    states, head, targets, reference = inputs(dtype=torch.float32)
    call = {"hidden": states, "weight": head.weight, "targets": targets, "reference": reference} | changes
    with pytest.raises(ValueError, match=message):
        token_stats(call.pop("hidden"), call.pop("weight"), call.pop("targets"), **call)


def test_only_the_fields_asked_for_are_there():
    states, head, targets, _ = inputs()
    stats = token_stats(states, head, targets, fields=("entropy", "tied", "entropy"))
    assert stats.entropy.shape == stats.tied.shape == (5,)
    assert stats.logprob is stats.mass is stats.kl is stats.sequence is None


def test_a_head_given_in_parts_is_the_head_given_whole():
    states, head, targets, _ = inputs(bias=True, softcap=2.0, scale=0.3)
    parts = token_stats(states, head.weight, targets, bias=head.bias, softcap=2.0, scale=0.3).logprob
    assert torch.equal(parts, token_stats(states, head, targets).logprob)
