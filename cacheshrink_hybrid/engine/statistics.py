"""What an engine counts."""

from __future__ import annotations

from dataclasses import dataclass

from ..pool.prefixes.lookup import PrefixStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationStatistics:
    """Of drafts, since the engine was made.

    Attributes:
        drafts: times that tokens were proposed for a request.
        draft_tokens: that were proposed.
        accepted_tokens: of these, those that stayed.
    """

    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Share of the proposed tokens that stayed; 0 without any."""
        return self.accepted_tokens / max(1, self.draft_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Counts since the engine was made, and of the moment.

    Attributes:
        steps: calls of `step` that ran the model.
        prefilled_tokens, decoded_tokens: fed to the model; recomputed ones and drafts that did not
            stay count too.
        prompt_tokens: of prompts that were computed to their end, each once.
        generated_tokens: chosen as next ones, whoever got them.
        preemptions: times that a request had to start over.
        waiting, running: requests now.
        held_frames, total_frames: of the pool now, those of prefixes included.
        prefixes: what requests took over from those before them; all 0 without a prefix cache.
        speculation: drafts; all 0 without any.
    """

    steps: int
    prefilled_tokens: int
    decoded_tokens: int
    prompt_tokens: int
    generated_tokens: int
    preemptions: int
    waiting: int
    running: int
    held_frames: int
    total_frames: int
    prefixes: PrefixStatistics
    speculation: SpeculationStatistics
