"""Random models whose chat templates know functions, in the forms of the common families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tests.models.random_models import VOCABULARY, make_random

_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)

#: What the templates of the families have in common with these: the tools, and the calls' form.
TEMPLATES = {
    "hermes": "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    + _TURNS.replace(
        "CALL",
        '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
        "{{ c.function.arguments | tojson }}}\n</tool_call>",
    ),
    "llama": 'Respond with {"name": function name, "parameters": dictionary}.\n'
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    + _TURNS.replace(
        "CALL",
        '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}',
    ),
    "mistral": "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    + _TURNS.replace("CALL", "[TOOL_CALLS]{{ [c.function] | tojson }}{{ c.id }}"),
    "mistral-args": "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    + _TURNS.replace(
        "CALL", "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
    ),
}

#: Tokens that the families have for it, and whether they are special.
MARKERS = {"<tool_call>": False, "</tool_call>": False, "[TOOL_CALLS]": True, "[ARGS]": True}


def make_calling(folder: Path, form: str, **changes: Any) -> Path:
    """Save a random Llama with the template of a family, and a token for each marker."""
    make_random(folder, vocab_size=VOCABULARY + len(MARKERS), **changes)
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    for marker, special in MARKERS.items():
        token = AddedToken(marker, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    tokenizer.save(path)
    (folder / "chat_template.jinja").write_text(TEMPLATES[form])
    return folder
