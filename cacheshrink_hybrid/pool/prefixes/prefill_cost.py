"""What prefill takes on this machine, learned from the pieces that were fed."""

from __future__ import annotations


class PrefillCost:
    """Seconds for tokens and for the pairs of tokens that attention looks at:

        seconds = a (number of tokens) + b (pairs),

    with a and b >= 0 by least squares over all pieces. Without any piece, a second per token.
    """

    def __init__(self) -> None:
        self._tokens_tokens = self._tokens_pairs = self._pairs_pairs = 0.0
        self._tokens_seconds = self._pairs_seconds = 0.0

    def observe(self, begin: int, end: int, seconds: float) -> None:
        """The tokens [begin, end) of a sequence were fed at once."""
        tokens, pairs = _work(begin, end)
        self._tokens_tokens += tokens * tokens
        self._tokens_pairs += tokens * pairs
        self._pairs_pairs += pairs * pairs
        self._tokens_seconds += tokens * seconds
        self._pairs_seconds += pairs * seconds

    def seconds(self, begin: int, end: int) -> float:
        """What the tokens [begin, end) of a sequence would take."""
        per_token, per_pair = self._rates()
        tokens, pairs = _work(begin, end)
        return per_token * tokens + per_pair * pairs

    def _rates(self) -> tuple[float, float]:
        if not self._tokens_tokens:
            return 1.0, 0.0
        alone = self._tokens_seconds / self._tokens_tokens
        determinant = self._tokens_tokens * self._pairs_pairs - self._tokens_pairs**2
        if determinant <= 1e-9 * self._tokens_tokens * self._pairs_pairs:
            return alone, 0.0  # pieces of one kind tell nothing about pairs
        per_token = self._tokens_seconds * self._pairs_pairs
        per_token -= self._pairs_seconds * self._tokens_pairs
        per_pair = self._pairs_seconds * self._tokens_tokens
        per_pair -= self._tokens_seconds * self._tokens_pairs
        if per_pair < 0:
            return alone, 0.0
        if per_token < 0:
            return 0.0, self._pairs_seconds / self._pairs_pairs
        return per_token / determinant, per_pair / determinant


def _work(begin: int, end: int) -> tuple[float, float]:
    """Tokens, and pairs of one of them and one before it or itself."""
    return float(end - begin), (end * (end + 1) - begin * (begin + 1)) / 2
