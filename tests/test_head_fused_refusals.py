"""What `fused_loss` refuses, and the sentence it says."""

import pytest
import torch

from ballast import BallastError, fused_loss, list_objectives, objective
from ballast.head import LMHead, fused_pass
from ballast.objectives import Objective
from head_inputs import inputs

FIVE = torch.zeros(5)

CASES = {
    "a name for an objective": ({"objective": "sft"}, "expected a built objective, got 'sft'; build it by"),
    "another scope": ({"objective": objective("eksft")}, "eksft: a loss of scope 'sequence' looks beyond the tile"),
    "batch scope": ({"objective": objective("eksft", scope="batch")}, "scope 'batch'"),
    "kl without reference": ({"objective": "needs kl"}, "needs 'kl': give `reference`, a KL .* cannot come from a col"),
    "ref without either": (
        {"objective": objective("prift-prob")},
        "needs 'ref_logprob': give it in `columns`, or give",
    ),
    "advantage without column": ({"objective": objective("gft")}, "gft needs 'advantage': give it in `columns`"),
    "unknown column": ({"columns": {"ref_mas": FIVE}}, "unknown field 'ref_mas'; did you mean 'ref_mass'"),
    "live column": ({"columns": {"logprob": FIVE}}, "'logprob' follows from the live model.*as a constant"),
    "kl column": ({"columns": {"kl": FIVE}}, "'kl' follows from the live model"),
    "short column": ({"columns": {"ref_mass": torch.zeros(4)}}, r"'ref_mass' is \[4\] on cpu, the targets \[5\]"),
    "column of columns": ({"columns": {"ref_mass": torch.zeros(5, 1)}}, r"'ref_mass' is \[5, 1\]"),
    "column elsewhere": ({"columns": {"ref_mass": torch.zeros(5, device="meta")}}, "on meta, the targets"),
    "column with gradient": ({"columns": {"ref_mass": torch.zeros(5, requires_grad=True)}}, "carries a gradient"),
    "denominator 0": ({"denominator": 0}, "denominator: expected a positive finite number, got 0"),
    "denominator tensor 0": ({"denominator": torch.tensor(0)}, "expected a positive finite number, got 0"),
    "denominator nan": ({"denominator": float("nan")}, "got nan"),
    "denominators": ({"denominator": torch.ones(5)}, r"expected one number without gradient, got \[5\]"),
    "denominator with gradient": ({"denominator": torch.ones((), requires_grad=True)}, "with gradient.*would be lost"),
    "chunk": ({"chunk": 0}, "chunk must be at least 1 row, got 0"),
    "hidden size": ({"hidden": torch.zeros(5, 4)}, r"hidden size 4 does not fit an LM head of \[7, 3\]"),
    "ignored target": ({"targets": torch.tensor([0, 1, -100, 2, 3])}, "ignored positions are to be left out"),
    "vocab_size": ({"vocab_size": 8}, "vocab_size 8 exceeds a vocabulary of 7 rows"),
    "bias twice": ({"weight": LMHead(torch.zeros(7, 3)), "bias": torch.zeros(7)}, "brings its own bias"),
}


class NeedsKL(Objective):
    name = "needs kl"
    source = "these tests"
    needs = ("logprob", "kl")


@pytest.mark.parametrize(("changes", "message"), list(CASES.values()), ids=list(CASES))
def test_refused(changes, message):
    states, head, targets, _ = inputs(dtype=torch.float32)
    call = {"hidden": states, "weight": head.weight, "targets": targets, "objective": objective("sft")} | changes
    if call["objective"] == "needs kl":
        call["objective"] = NeedsKL()
    with pytest.raises(ValueError, match=message) as raised:
        fused_loss(**call)
    assert "\n" not in str(raised.value)


def test_every_objective_of_wider_scope_is_refused():
    states, head, targets, reference = inputs()
    refused = [info.name for info in list_objectives() if info.scope != "token"]
    assert "eksft" in refused
    for name in refused:
        with pytest.raises(BallastError, match=f"{name}: a loss of scope"):
            fused_loss(states, head, targets, objective(name), reference=reference)


def test_an_objective_that_changes_inputs_is_refused():
    class Changing(type(objective("sft"))):
        def prepare_inputs(self, embeddings, arg_max, labels, *, progress=0.0, noise=0.0):
            return embeddings

    with pytest.raises(BallastError, match="changes what the model reads"):
        fused_loss(*inputs()[:3], Changing())


class Wrong(type(objective("sft"))):
    def __init__(self, losses=None, mask=None):
        object.__setattr__(self, "_losses", losses)
        object.__setattr__(self, "_mask", mask)

    def active(self, columns):
        return self._mask

    def per_token_loss(self, stats):
        return super().per_token_loss(stats) if self._losses is None else self._losses(stats.require("logprob"))


@pytest.mark.parametrize("losses", [torch.sum, lambda value: value[:, None], lambda value: value[:1]])
def test_losses_that_are_not_one_per_token_are_refused(losses):
    with pytest.raises(ValueError, match="expected one loss for each of 5 tokens, got the shape"):
        fused_loss(*inputs()[:3], Wrong(losses))


@pytest.mark.parametrize("mask", [torch.ones(5), torch.ones(4, dtype=torch.bool), torch.tensor([0, 1, 2])])
def test_a_mask_that_is_not_one_bool_per_token_is_refused(mask):
    with pytest.raises(BallastError, match=r"active\(\) gave .* other tokens would be left out"):
        fused_loss(*inputs()[:3], Wrong(mask=mask))


def test_a_field_that_is_not_computed_here_is_refused():
    states, head, targets, _ = inputs()
    with pytest.raises(ValueError, match="'position' comes from the rows"):
        fused_pass(states, head, targets, objective("sft"), fields=("position",))
    with pytest.raises(ValueError, match="'kl' needs `reference`"):
        fused_pass(states, head, targets, objective("sft"), fields=("kl",))
