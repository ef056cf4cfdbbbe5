"""The text of a request, decoded token by token.

Decoders look at neighbours: some drop the space before the first word, and a character may take
several tokens. So tokens are decoded behind a few that came before, of the prompt at first, and
only what is certain is given out. A token costs the decoding of at most `LONGEST_WINDOW` tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

CONTEXT = 6
LONGEST_WINDOW = 24
CHARACTER_BYTES = 4
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Decoder:
    """Text of tokens; a tokenizer's own cleaning, which takes back spaces that were shown before,
    is left out.

    Args:
        tokenizer: of the model.
        skip_special_tokens: special tokens have no text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self._skips = skip_special_tokens
        self.silent = frozenset(tokenizer.all_special_ids if skip_special_tokens else ())

    def __call__(self, tokens: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(tokens),
                skip_special_tokens=self._skips,
                clean_up_tokenization_spaces=False,
            )
        )


class Transcript:
    """The text that a request's tokens add to its prompt.

    Args:
        decoder: of the model's tokenizer.
        prompt_ids: the prompt.
        stops: strings that end the text.
        include_stop: they are part of it.
        min_tokens: what so many tokens say holds no stop string.
        silent: generated tokens that are not part of the text, beside those of the decoder.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt_ids: Sequence[int],
        stops: Sequence[str] = (),
        *,
        include_stop: bool = False,
        min_tokens: int = 0,
        silent: Collection[int] = (),
    ) -> None:
        self._decoder = decoder
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._silent = decoder.silent.union(silent)
        self._lock = threading.Lock()
        self._window, self._num_settled = self._context(prompt_ids)
        """Tokens that are decoded together, and how many of them make whole characters."""
        # A character that the prompt leaves incomplete is the output's.
        self._num_given = len(decoder(self._window[: self._num_settled]))
        """Characters of the decoded window that are in `_text`, or of the prompt."""
        self._pending = ""
        """What the tokens behind those decode to so far."""
        self._text = ""
        self._num_free = 0
        """Characters of `_text` in which no stop string is looked for."""
        self._shown = [0]
        """After each number of tokens: characters of `_text` that no later token takes away."""
        self._end: int | None = None
        """Where the text ends, if a stop string was found."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy has a lock of its own."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def extend(self, tokens: Sequence[int]) -> bool:
        """Read on in the generated tokens, all of which are given; whether there is a stop string
        in their text."""
        with self._lock:
            self._extend(tokens)
            return self._end is not None

    def text_after(self, tokens: Sequence[int], *, finished: bool) -> str:
        """The text of the first generated tokens.

        Args:
            tokens: all of them, from the first on.
            finished: no more will come, so nothing is held back.
        """
        with self._lock:
            self._extend(tokens)
            if not finished:
                return self._text[: self._shown[len(tokens)]]
            whole = self._text + self._pending
            return whole[: self._end]

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens[len(self._shown) - 1 :]:
            if token not in self._silent:
                self._read(token)
            if len(self._shown) <= self._min_tokens:
                self._num_free = len(self._text)
            self._shown.append(self._num_certain() if self._end is None else self._end)

    def _read(self, token: int) -> None:
        self._window.append(token)
        decoded = self._decoder(self._window)
        certain = len(decoded.rstrip(INCOMPLETE))
        if certain > self._num_given:
            self._give(decoded, certain)
        if certain == len(decoded):
            self._num_settled = len(self._window)
        begin = self._num_given
        if certain < begin:
            # Bytes that make no whole number of characters may be shown as one mark each, those of
            # characters before included, which were given out.
            begin = max(begin, len(decoded) - (len(self._window) - self._num_settled))
        self._pending = decoded[begin:]
        # More than one character may lack: these are no parts of any, and stand for themselves.
        if len(self._window) > LONGEST_WINDOW and len(self._pending) >= CHARACTER_BYTES:
            self._give(decoded, len(decoded) - CHARACTER_BYTES + 1)
        # Within a character nothing tells where the ones before begin; garbage never tells.
        if len(self._window) > LONGEST_WINDOW + (2 * CHARACTER_BYTES if self._pending else 0):
            self._shorten(decoded)

    def _give(self, decoded: str, end: int) -> None:
        """Add the decoded characters up to `end` to the text, and look for stop strings."""
        longest = max(map(len, self._stops), default=1)
        first = max(self._num_free, len(self._text) - longest + 1)
        self._text += decoded[self._num_given : end]
        self._num_given = end
        self._pending = decoded[end:]
        if self._end is None and len(self._shown) > self._min_tokens:
            found = [(self._text.find(stop, first), stop) for stop in self._stops]
            for at, stop in sorted(one for one in found if one[0] >= 0)[:1]:
                self._end = at + (len(stop) if self._include_stop else 0)

    def _shorten(self, decoded: str) -> None:
        """Forget the oldest tokens of the window, where the rest decodes to what it did."""
        rest = len(decoded) - self._num_given
        for size in range(CONTEXT, CONTEXT + CHARACTER_BYTES):
            window = self._window[-size:]
            alone = self._decoder(window)
            if len(alone) > rest and decoded.endswith(alone):
                self._cut(window, len(alone) - rest)
                return
        if len(self._window) > 4 * LONGEST_WINDOW:
            window = self._window[-CONTEXT:]
            self._cut(window, max(0, len(self._decoder(window)) - rest))

    def _cut(self, window: list[int], num_given: int) -> None:
        self._num_settled = max(0, self._num_settled - len(self._window) + len(window))
        self._window, self._num_given = window, num_given

    def _num_certain(self) -> int:
        """Characters before what may become a stop string."""
        text = self._text
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(len(text) - self._num_free, longest), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops if len(stop) > length):
                return len(text) - length
        return len(text)

    def _context(self, prompt_ids: Sequence[int]) -> tuple[list[int], int]:
        """Last tokens of the prompt, from the beginning of a character on, and how many of them
        there are before a character that the prompt leaves incomplete."""
        last: list[int] = []
        for token in reversed(prompt_ids):
            if len(last) == CONTEXT + 2 * CHARACTER_BYTES:
                break
            if token not in self._decoder.silent:
                last.insert(0, token)
        for num_lacking in range(CHARACTER_BYTES):
            for begin in range(min(CHARACTER_BYTES, len(last) - num_lacking)):
                decoded = self._decoder(last[begin : len(last) - num_lacking])
                if not (decoded.startswith(INCOMPLETE) or decoded.endswith(INCOMPLETE)):
                    return last[begin:], len(last) - begin - num_lacking
        return last, len(last)
