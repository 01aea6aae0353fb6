"""How the next token is chosen, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingRule:
    """Applied in the order of the fields, to what is left each time. The defaults choose the likeliest token.

    Args:
        repetition_penalty: > 0; logits of tokens that the prompt or the answer has are divided by it where they are
            positive and multiplied where they are negative (CTRL, arXiv 1909.05858); 1 is off.
        temperature: ≥ 0; logits are divided by it; at 0 the likeliest token is taken and the fields below do nothing.
        top_k: only this many of the likeliest tokens; 0 is off.
        top_p: only the fewest likeliest tokens that have this probability together (arXiv 1904.09751); 1 is off.
        min_p: only tokens that are at least so many times as likely as the likeliest (arXiv 2407.01082); 0 is off.
        logprobs: how many of the likeliest tokens are told with each chosen one; None tells nothing.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    logprobs: int | None = None

    @property
    def cuts(self) -> bool:
        """Whether it may have to know which tokens are likelier than others: top_k or top_p is on."""
        return self.top_k > 0 or self.top_p < 1
