"""What a snapshot of transformers can serve, by the name of its architecture. Pure.

The first row that fits counts. A row is for a *head*: what comes out of the model, not its family,
so new families of a known head are served without a change here.
"""

from __future__ import annotations

from typing import NamedTuple

#: Encoders that number positions from ``pad_token_id + 1``: fairseq's habit.
OFFSET_POSITIONS = frozenset(
    {"camembert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)

#: Encoders of text whose architecture is called ``XModel``, as it would be in vision and audio.
TEXT_ENCODERS = OFFSET_POSITIONS | {
    "albert",
    "bert",
    "convbert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "mobilebert",
    "modernbert",
    "nomic_bert",
    "rembert",
    "roformer",
    "squeezebert",
}


class Head(NamedTuple):
    """Architectures whose name ends in one of ``names``, and the kinds that they serve.

    With ``types`` the model type must be among them, too. ``words`` is how an error names them.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    words: str
    types: frozenset[str] = frozenset()


HEADS: tuple[Head, ...] = (
    Head(("ForCausalLM", "LMHeadModel"), ("chat", "completion"), "causal language models"),
    Head(("ForMaskedLM",), ("embedding",), "text encoders"),
    Head(("",), ("embedding",), "text encoders", TEXT_ENCODERS),
)


#: What is served only where the configuration asks for it: what a classifier's labels mean stands
#: nowhere in its files.
ON_REQUEST: tuple[Head, ...] = (
    Head(
        ("ForSequenceClassification", "ForImageClassification"),
        ("moderation",),
        "classifiers, with kinds = ['moderation']",
    ),
)


def abilities(
    architecture: str, model_type: str, asked: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Return the kinds that a model can serve; none if blip has no runtime for it.

    ``asked`` are the kinds that its configuration names.
    """
    for head in ON_REQUEST:
        if asked == head.kinds and architecture.endswith(head.names):
            return head.kinds
    for head in HEADS:
        if architecture.endswith(head.names) and (not head.types or model_type in head.types):
            return head.kinds
    return ()


def served() -> str:
    """Return what blip runs, for errors: ``causal language models (chat, completion), ...``."""
    rows = {head.words: head.kinds for head in (*HEADS, *ON_REQUEST)}
    said = [f"{words} ({', '.join(kinds)})" for words, kinds in rows.items()]
    return ", ".join(said)
