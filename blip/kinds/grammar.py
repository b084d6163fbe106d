"""What the text of an answer must look like."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blip.kinds.base import TaskInput

#: Alternatives of a ``choice``: more are a table, and no longer a question to a model.
MAX_CHOICES = 1024


class Grammar(TaskInput):
    """A form that an answer keeps to, token by token.

    ``text`` is a JSON Schema as JSON text, a regular expression (Rust's syntax, over the whole
    answer) or a Lark grammar whose beginning is the rule ``start``; ``choices`` are the texts to
    choose from. Keywords of a schema that cannot be enforced are an error if ``strict``, and
    ignored otherwise. ``at`` is the request's field, for errors.
    """

    form: Literal["json", "regex", "lark", "choice"]
    text: str = ""
    choices: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_CHOICES)] = (
        Field(default_factory=list)
    )
    strict: bool = True
    at: str = "grammar"


#: Any JSON object, as JSON Schema.
ANY_OBJECT = '{"type":"object"}'
