"""A tiny random Llama and small in-memory tokenizers, for tests that need no download.

Imported as ``from tiny import tiny_model, char_tokenizer``.
"""

from __future__ import annotations

CHARACTERS = "\n !\"#%&'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz"

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def char_tokenizer(*, characters: str = CHARACTERS, chat_template: str | None = None, add_bos: bool = False):
    """Return a fast tokenizer with one token per character; ``<pad>`` 0, ``<bos>`` 1, ``<eos>`` 2, ``<unk>`` 3."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *dict.fromkeys(characters)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    seed: int = 0,
    *,
    vocab: int | None = None,
    hidden: int = 16,
    layers: int = 2,
    heads: int = 2,
    context: int = 128,
    tied: bool = True,
    dtype=None,
    initializer_range: float = 0.5,
    **config,
):
    """Return a randomly initialised ``LlamaForCausalLM`` whose ids match ``char_tokenizer()``, in eval mode.

    ``config`` goes to ``LlamaConfig``. The wide initialisation keeps the distributions far from uniform; the
    process's random state is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=vocab or 4 + len(dict.fromkeys(CHARACTERS)),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **config,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(settings)
    return model.to(dtype or torch.float32).eval()
