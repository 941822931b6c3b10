"""What is asked of models and tokenizers is what those of transformers and PEFT have; mypy checks the signatures."""

import pytest

from ballast.protocols import Model, Tokenizer
from tiny import char_tokenizer, tiny_model


def adapted_model():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("protocol", "make"), [(Model, tiny_model), (Model, adapted_model), (Tokenizer, char_tokenizer)]
)
def test_transformers_and_peft_have_what_is_asked(protocol, make):
    asked = {name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")}
    thing = make()
    assert len(asked) > 5
    assert not [name for name in asked if not hasattr(thing, name)]
