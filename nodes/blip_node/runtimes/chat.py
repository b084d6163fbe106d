"""``chat``: messages, through the model's own template, to a prompt."""

from __future__ import annotations

from typing import Any

from blip.errors import InvalidRequest
from blip.kinds.chat import ChatInput
from blip_node.runtimes.decoding.prompt import Prompt
from blip_node.runtimes.decoding.vocabulary import Vocabulary
from blip_node.runtimes.tool_formats import format_of
from blip_node.runtimes.tool_messages import templated


def chat_prompt(value: ChatInput, tokenizer: Any, vocabulary: Vocabulary) -> Prompt:
    """Render a conversation up to where the assistant's next message begins.

    ``tokenizer`` is transformers' own. Raises :class:`~blip.errors.InvalidRequest` when the model
    has no template, or its template does not accept these messages.
    """
    template = tokenizer.chat_template
    if not template:
        raise InvalidRequest(
            "this model has no chat template",
            hint="Use completions: POST /v1/completions with a prompt.",
        )
    # "developer" is a newer word for "system" that most templates have not heard of
    system = "developer" if "developer" in str(template) else "system"
    messages, tools = templated(value, format_of(str(template)))
    for message in messages:
        if message["role"] == "developer":
            message["role"] = system
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        # Templates are programs: besides raise_exception, anything may fail on odd messages.
        raise InvalidRequest(
            f"the model's chat template does not accept these messages: {error}", param="messages"
        ) from None
    ids = vocabulary.encode(text, special=False)  # the template wrote its own markers
    if not ids:
        raise InvalidRequest(
            "the model's chat template makes nothing of these messages", param="messages"
        )
    return Prompt(ids)
