"""``completion``: a text, or token ids, to a prompt."""

from __future__ import annotations

from blip.errors import InvalidRequest
from blip.kinds.completion import CompletionInput
from blip_node.runtimes.decoding.prompt import Prompt
from blip_node.runtimes.decoding.vocabulary import Vocabulary


def completion_prompt(value: CompletionInput, vocabulary: Vocabulary, begin: int | None) -> Prompt:
    """Return the prompt's tokens; token ids are taken as they are, without begin markers.

    ``begin`` is the token that an empty text stands for. Raises
    :class:`~blip.errors.InvalidRequest` for ids that the model does not have.
    """
    if isinstance(value.prompt, str):
        ids = vocabulary.encode(value.prompt, special=True)
        if not ids and begin is not None:
            ids = [begin]
        if not ids:
            raise InvalidRequest("'prompt': the text is empty", param="prompt")
        text = value.prompt
    else:
        vocabulary.check(value.prompt, "prompt")
        ids = list(value.prompt)
        text = vocabulary.decode(ids) if value.echo else ""
    return Prompt(ids, text if value.echo else "", tuple(ids[-1:]))
