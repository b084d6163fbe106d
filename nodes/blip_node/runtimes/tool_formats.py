"""How models write calls of functions: a form for each family. Pure.

A model's chat template tells which it was trained on. A model whose template knows no functions,
or a form that is not here, is told about them in a system message, in the Hermes form, which many
have seen and which explains itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The text of calls: ``marker opening call (between call)* closing``.

    A call is a head (``before``, the function's name, ``after``), its arguments as a JSON object,
    and a tail. Markers
    are items of their own, "" is a gap of a few spaces or none. Without a ``marker`` an answer
    that begins with ``before`` is a call. ``found`` reads a head; its group is the name.
    """

    name: str
    marker: str
    before: str
    after: str
    found: re.Pattern[str]
    tail: Sequence[str] = ()
    opening: Sequence[str] = ()
    between: Sequence[str] = ()
    closing: Sequence[str] = ()
    #: Tool results in messages: whether ids must be nine letters or digits.
    short_ids: bool = False

    def head(self, name: str) -> tuple[str, str]:
        """Return what a call of a function begins with."""
        return self.before + name, self.after


#: NousResearch's Hermes, Qwen 2.5 and 3, SmolLM3, and others.
HERMES = ToolFormat(
    "hermes",
    marker="<tool_call>",
    before='{"name": "',
    after='", "arguments": ',
    found=re.compile(r'\{"name": "([^"]*)", "arguments": '),
    opening=("",),
    tail=("}", "", "</tool_call>"),
    between=("", "<tool_call>", ""),
)

#: Llama 3.1 to 3.3: the answer itself is the call, one only.
LLAMA = ToolFormat(
    "llama",
    marker="",
    before='{"name": "',
    after='", "parameters": ',
    found=re.compile(r'\{"name": "([^"]*)", "parameters": '),
    tail=("}",),
)

#: Mistral's first: a list of calls.
MISTRAL = ToolFormat(
    "mistral",
    marker="[TOOL_CALLS]",
    before='{"name": "',
    after='", "arguments": ',
    found=re.compile(r'\{"name": "([^"]*)", "arguments": '),
    opening=("", "["),
    tail=("}",),
    between=(", ",),
    closing=("]",),
    short_ids=True,
)

#: Mistral's since late 2025 and Magistral: a marker a call, and one between name and arguments.
MISTRAL_ARGS = ToolFormat(
    "mistral-args",
    marker="[TOOL_CALLS]",
    before="",
    after="[ARGS]",
    found=re.compile(r"([a-zA-Z0-9_-]+)\[ARGS\]"),
    between=("[TOOL_CALLS]",),
    short_ids=True,
)


def format_of(template: str) -> ToolFormat | None:
    """Return the form that a chat template uses, None if it knows none that we know."""
    if not re.search(r"\btools\b", template):
        return None
    if "[TOOL_CALLS]" in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template and not re.search("<function=|<arg_key>", template):
        return HERMES
    if '"parameters": ' in template:
        return LLAMA
    return None
