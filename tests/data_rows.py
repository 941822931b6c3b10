"""Rows of every training format, chat templates, and TRL's own trainer over them.

Imported as ``from data_rows import ...``.
"""

from __future__ import annotations

import string
from typing import Any

from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

PLAIN_TEMPLATE = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")

# Writes everything of a row: tools, template options, reasoning, calls, and the end token after every answer.
FULL_TEMPLATE = (
    "{% if tools %}[tools {{ tools | tojson }}]{% endif %}{% if mood is defined %}[mood {{ mood }}]{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}[call {{ call.function | tojson }}]{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

WORDS = ("one", "two plus two is four", "a", "seven and seven", "why not", "the long way home is long", "ten", "yes")


def _chat(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def rows(kind: str, count: int = 8) -> list[dict[str, Any]]:
    """``count`` rows of differing lengths: "text", "prompt-completion", "messages" or "chat-prompt-completion"."""
    out = []
    for i in range(count):
        question, answer, second = (WORDS[(i + k) % len(WORDS)] for k in range(3))
        makers = {
            "text": lambda q=question, a=answer: {"text": f"{q}: {a}"},
            "prompt-completion": lambda q=question, a=answer, s=second: {"prompt": f"{q}? "[-9:], "completion": a + s},
            "messages": lambda q=question, a=answer, s=second: {
                "messages": [_chat("user", q), _chat("assistant", a), _chat("user", s), _chat("assistant", q)]
            },
            "chat-prompt-completion": lambda q=question, a=answer: {
                "prompt": [_chat("system", "be"), _chat("user", q)],
                "completion": [_chat("assistant", a)],
            },
        }
        out.append(makers[kind]())
    return out


def tokenizer(template: str | None = CHAT_TEMPLATE):
    return char_tokenizer(chat_template=template)


def wide_tokenizer(template: str | None = FULL_TEMPLATE):
    """A tokenizer of all printable ASCII characters, for JSON and for the templates that TRL ships."""
    return char_tokenizer(characters=string.printable, chat_template=template)


def chat(role: str, content: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": role, **({} if content is None else {"content": content}), **more}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": f"A {name}", "parameters": parameters}}


def trained_text(prepared, tok) -> list[str]:
    """The whole rows as the model reads them."""
    return [tok.decode(ids) for ids in prepared.dataset["input_ids"]]


def trl_dataset(data, folder, template: str | None = CHAT_TEMPLATE, **options):
    """The ``train_dataset`` of a real ``trl.SFTTrainer``, and the arguments it was made with."""
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", **options)
    trainer = SFTTrainer(tiny_model(), args, train_dataset=data, processing_class=tokenizer(template))
    return trainer.train_dataset, args
