"""How long the own ends of prompts are, and the checkpoint before them.

What a prompt of n tokens adds to the m that were found of it is its own. Those to come that begin
like it part from it before its own end, too, which is as long as theirs: with F(e) the share of own
ends of at most e tokens, a checkpoint at n - e saves F(e) (n - e) tokens. It is put where that is
the most.
"""

from __future__ import annotations

from bisect import insort

MEMORY = 256
"""Latest own ends that count."""


class EndPlan:
    """A position before the end of a prompt."""

    def __init__(self) -> None:
        self._latest: list[int] = []
        self._sorted: list[int] = []

    def observe(self, num_matched: int, num_tokens: int) -> None:
        """So many of a prompt's tokens were found; those of which none were say nothing."""
        if not num_matched:
            return
        end = num_tokens - num_matched
        self._latest.append(end)
        insort(self._sorted, end)
        if len(self._latest) > MEMORY:
            self._sorted.remove(self._latest.pop(0))

    def is_known(self) -> bool:
        """Whether anything was found of a prompt yet."""
        return bool(self._sorted)

    def positions(self, num_tokens: int) -> list[int]:
        """Of a prompt of so many tokens: the best one; none as long as nothing was found."""
        gains = [
            (number * (num_tokens - end), num_tokens - end)
            for number, end in enumerate(self._sorted, start=1)
            if end < num_tokens
        ]
        return [max(gains)[1]] if gains else []
