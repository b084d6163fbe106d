"""One stream of text as it grows: its tokens, what of it was shown, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from blip.kinds.text import PREFILL_SHARE, Delta, Finish, FinishReason, TokenLogprob, delta_to_wire
from blip.kinds.tools import CallPiece
from blip_node.runtimes.base import Outcome
from blip_node.runtimes.decoding.constraint import Constraint
from blip_node.runtimes.decoding.detokenizer import Detokenizer
from blip_node.runtimes.decoding.stops import StopMatcher
from blip_node.runtimes.decoding.tool_stream import ToolStream


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one stream; knows no torch, its ``cache`` belongs to the stepper.

    ``limit`` is the most tokens that may be generated, those of earlier attempts included.
    ``lead`` is text that goes out in front of the first token (an echoed prompt). ``computed``
    of the tokens are in the cache; the rest is due. ``constraint`` is the grammar that the answer
    keeps to, ``tools`` finds calls in its text.
    """

    prompt: list[int]
    limit: int
    stop_ids: frozenset[int]
    detokenizer: Detokenizer
    stops: StopMatcher
    lead: str = ""
    constraint: Constraint | None = None
    tools: ToolStream | None = None
    generated: list[int] = field(default_factory=list)
    computed: int = 0
    cache: Any = None

    @property
    def ready(self) -> bool:
        """Whether all tokens so far are computed, so that the next one may be chosen."""
        return self.computed == len(self.prompt) + len(self.generated)

    def due(self, most: int) -> list[int]:
        """Return the next tokens to compute, at most ``most``: prompt first, then generated."""
        ahead = self.computed - len(self.prompt)
        if ahead >= 0:
            return self.generated[ahead : ahead + most]
        tokens = self.prompt[self.computed : self.computed + most]
        return tokens + self.generated[: most - len(tokens)]

    def resume(self, generated: Items[int]) -> Finish | None:
        """Take over what an earlier attempt has delivered, silently.

        Text that it held back is held back here too. Returns the finish if that attempt had
        already come to its end.
        """
        for token in generated:
            step = self.accept(token)
            if isinstance(step, Finish):
                return step._replace(ids=[])
        return None

    def accept(self, token: int, logprob: TokenLogprob | None = None) -> Delta | Finish:
        """Append the chosen token; return what to send for it.

        The token that ends the stream has no log-probability in the answer when it is an end
        marker: it is not part of the text.
        """
        self.generated.append(token)
        lead, self.lead = self.lead, ""
        if token in self.stop_ids:
            return self._finish("stop", lead, token, None, [])
        if self.constraint is not None and self.constraint.active:
            self.constraint.advance(token)
        text = self.detokenizer.push(token)
        calls: list[CallPiece] = []
        if self.tools is not None:
            text, calls = self.tools.push(token, text)
        text, stopped = self.stops.push(text)
        text = lead + text
        logprobs = None if logprob is None else [logprob]
        if stopped:
            return self._ended("stop", text, token, logprobs, calls)
        if self.constraint is not None and self.constraint.complete:
            return self._finish("stop", text, token, logprobs, calls)
        if len(self.generated) >= self.limit:
            return self._finish("length", text, token, logprobs, calls)
        return Delta(text, [token], logprobs, calls or None)

    def _finish(
        self,
        reason: FinishReason,
        text: str,
        token: int,
        logprobs: list[TokenLogprob] | None,
        calls: list[CallPiece],
    ) -> Finish:
        held = self.detokenizer.flush()
        if self.tools is not None:
            held, more = self.tools.push(token, held)
            held += self.tools.flush()
            calls = calls + more
        rest, stopped = self.stops.push(held)
        if not stopped:
            rest += self.stops.flush()
        return self._ended("stop" if stopped else reason, text + rest, token, logprobs, calls)

    def _ended(
        self,
        reason: FinishReason,
        text: str,
        token: int,
        logprobs: list[TokenLogprob] | None,
        calls: list[CallPiece],
    ) -> Finish:
        if reason == "stop" and self.tools is not None and self.tools.calls:
            reason = "tool_calls"
        return Finish(reason, text, [token], logprobs, calls or None, self.stops.found)


def outcome(sequence: Sequence, finish: Finish, resumed: int) -> Outcome:
    """Count: usage as the client sees it, over all attempts; units as this attempt worked."""
    prompt, completion = len(sequence.prompt), len(sequence.generated)
    return Outcome(
        delta_to_wire(finish),
        usage={"prompt_tokens": prompt, "completion_tokens": completion},
        units=(prompt + resumed) * PREFILL_SHARE + completion - resumed,
    )
