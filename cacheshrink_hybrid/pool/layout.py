"""Where every cached byte lies: the layout of frames, compiled from plain numbers.

The arena is cut into equal frames of `frame_bytes` bytes. A frame serves one of two kinds of
content, and any frame can serve either:

    KV      T tokens x all layers of one lifetime class (rows of all tokens, of one width of window,
            or of the first tokens only). Layer-major: the row of layer l and token t starts at byte
            offset[l] + (t mod T) * row_bytes[l] of the frame with number t // T of its sequence.
    state   a piece of the one byte string that holds a sequence's recurrent states. Rows never
            straddle two frames.

Offsets are prefix sums, so a different row width in every layer costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from ..errors import PlanError
from .lifetime import TOKENS, LayerRows, LifetimeClass, RowSet
from .state_map import ROW_ALIGNMENT, StateMap, StateRows, aligned, place_state

FRAME_ALIGNMENT = 256
TOKENS_PER_FRAME = (64, 32, 16, 8)
TOKEN_MULTIPLE = 8
STATE_FRAME_BYTES = (65536, 32768, 16384, 8192, 4096, 2048, 1024, 512, 256)
REFERENCE_TOKENS = 1024
WASTE_TOLERANCE = 0.008
# Frames may be stretched by this share so that state rows fill them without a gap, which lets
# neighbouring frames be read as one tensor.
STRETCH_TOLERANCE = 0.001


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Frame size, lifetime classes and state map of one model under one plan."""

    frame_bytes: int
    classes: tuple[LifetimeClass, ...]
    state: StateMap

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every number in the layout, in hexadecimal. Classes that have rows of every
        token go without what only others have, as in layouts that know no others."""
        values = asdict(self)
        for lifetime in values["classes"]:
            if lifetime["kind"] == TOKENS:
                del lifetime["kind"], lifetime["limit"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def places(self) -> dict[RowSet, tuple[int, int]]:
        """(class number, place within the class) of all rows."""
        return {
            RowSet(layer_idx, lifetime.kind): (number, place)
            for number, lifetime in enumerate(self.classes)
            for place, layer_idx in enumerate(lifetime.layer_ids)
        }

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's rows in all layers, without those that only some tokens have."""
        return sum(x.bytes_per_token for x in self.classes if x.kind == TOKENS)

    def frames_for(self, num_tokens: int, history: int = 0) -> int:
        """Frames that a sequence of `num_tokens` tokens holds, state included. Exact for a
        sequence that grew by single tokens, or has no windows."""
        kv = sum(lifetime.frames_for(num_tokens, history) for lifetime in self.classes)
        return kv + self.state.num_frames

    def first_frames(self, num_tokens: int) -> int:
        """Frames of a sequence whose first step has `num_tokens` tokens, through the next step of
        one token; state included."""
        kv = sum(
            max(x.first_frames(num_tokens), x.frames_for(num_tokens + 1)) for x in self.classes
        )
        return kv + self.state.num_frames

    def held_bytes(self, num_tokens: int) -> int:
        return self.frames_for(num_tokens) * self.frame_bytes

    def useful_bytes(self, num_tokens: int) -> int:
        """Bytes of the rows and states in those frames."""
        kv = sum(lifetime.useful_bytes(num_tokens) for lifetime in self.classes)
        return kv + self.state.useful_bytes

    def expected_waste(self, num_tokens: int) -> float:
        """Share of the held bytes that is of no use, as a mean over 64 neighbouring lengths from
        `num_tokens` on: half a frame per class, the rest of the state's last frame, and gaps."""
        lengths = range(num_tokens, num_tokens + 64)
        held = sum(self.held_bytes(n) for n in lengths)
        return 1 - sum(self.useful_bytes(n) for n in lengths) / held

    def table(self) -> str:
        """The layout in a few lines of text."""
        lines = [f"frames of {self.frame_bytes} bytes, layout {self.digest[:16]}"]
        for lifetime in self.classes:
            reach = "full" if lifetime.window is None else f"window {lifetime.window}"
            if lifetime.kind != TOKENS:
                reach = f"{lifetime.kind} {lifetime.window or lifetime.limit} tokens"
            lines.append(
                f"  {reach}: {len(lifetime.layer_ids)} layers, {lifetime.bytes_per_token} bytes "
                f"per token, {lifetime.tokens_per_frame} tokens per frame"
            )
        if self.state.num_frames:
            lines.append(
                f"  state: {self.state.useful_bytes} bytes per sequence in "
                f"{self.state.num_frames} frames"
            )
        lines.append(
            f"  waste: {100 * self.expected_waste(1024):.2f} % at 1k tokens, "
            f"{100 * self.expected_waste(8192):.2f} % at 8k"
        )
        return "\n".join(lines)


def compile_layout(
    rows: Sequence[LayerRows],
    states: Sequence[StateRows] = (),
    *,
    tokens_per_frame: int | None = None,
    reference_tokens: int = REFERENCE_TOKENS,
    tolerance: float = WASTE_TOLERANCE,
) -> Layout:
    """Choose the frame size and place every row. A pure function.

    Of the classes with rows of all tokens or of a sliding window, the one with most bytes per token
    gets T tokens per frame and fills the frame; every other one gets the largest multiple of 8
    tokens that fits, and rows of recent and first tokens as many as fit. T is the largest of 64,
    32, 16 and 8 whose expected waste at `reference_tokens` tokens is at most `tolerance`; if there
    is none, that of the least waste.

    Args:
        rows: per attention layer, in any order.
        states: fixed-size tensors per sequence, in the order in which they are to lie.
        tokens_per_frame: T to size the frame for, instead of the choice above; a multiple of 8.

    Raises:
        PlanError: nothing to store, sizes below one byte, or a layer named twice.
    """
    _check(rows, states, tokens_per_frame)
    groups: dict[tuple[int, int, int], list[LayerRows]] = {}
    for row in sorted(rows, key=lambda row: (row.lifetime, row.layer_idx)):
        groups.setdefault(row.lifetime, []).append(row)
    members = list(groups.values())
    sizes: list[int]
    if members:
        choices = (tokens_per_frame,) if tokens_per_frame else TOKENS_PER_FRAME
        sizes = [_frame_bytes(members, tokens, states) for tokens in choices]
    else:
        least = max(state.row_bytes for state in states)
        sizes = [
            _stretched(aligned(max(size, least), FRAME_ALIGNMENT), states)
            for size in STATE_FRAME_BYTES
        ]
    layouts = []
    for frame_bytes in sizes:
        layout = Layout(
            frame_bytes=frame_bytes,
            classes=tuple(_place_class(rows, frame_bytes) for rows in members),
            state=place_state(states, frame_bytes),
        )
        if layout.expected_waste(reference_tokens) <= tolerance:
            return layout
        layouts.append(layout)
    return min(layouts, key=lambda layout: layout.expected_waste(reference_tokens))


def _check(
    rows: Sequence[LayerRows], states: Sequence[StateRows], tokens_per_frame: int | None
) -> None:
    if not rows and not states:
        raise PlanError("the model has no attention layer and no state, so nothing to lay out")
    for row in rows:
        given = [n for n in (row.row_bytes, row.window, row.limit) if n is not None]
        if min(given) < 1:
            raise PlanError(f"{row} must have row_bytes >= 1, window >= 1 and limit >= 1, or None")
    for state in states:
        if state.row_bytes < 1 or state.num_rows < 1:
            raise PlanError(f"{state} must have num_rows >= 1 and row_bytes >= 1")
    ids: list[tuple[int, str]] = [row.row_set for row in rows]
    names = [(state.layer_idx, state.name) for state in states]
    for named in (ids, names):
        if len(set(named)) != len(named):
            raise PlanError(f"each layer or state tensor is to be named once; got {named}")
    if tokens_per_frame is not None and (tokens_per_frame < 8 or tokens_per_frame % 8):
        raise PlanError(f"tokens_per_frame={tokens_per_frame} must be a positive multiple of 8")


def _class_bytes(members: Sequence[LayerRows], tokens: int) -> int:
    return sum(aligned(tokens * row.row_bytes, ROW_ALIGNMENT) for row in members)


def _multiple(members: Sequence[LayerRows]) -> int:
    """Tokens of a frame are a multiple of this."""
    return TOKEN_MULTIPLE if members[0].kind == TOKENS else 1


def _frame_bytes(
    groups: Sequence[Sequence[LayerRows]], tokens: int, states: Sequence[StateRows]
) -> int:
    whole = [members for members in groups if members[0].kind == TOKENS] or groups
    widest = max(whole, key=lambda members: sum(row.row_bytes for row in members))
    size = max(
        _class_bytes(widest, tokens),
        *(_class_bytes(members, _multiple(members)) for members in groups),
        *(state.row_bytes for state in states),
    )
    return _stretched(aligned(size, FRAME_ALIGNMENT), states)


def _stretched(frame_bytes: int, states: Sequence[StateRows]) -> int:
    """The next multiple of every state row's size, if it is near enough."""
    unit = math.lcm(FRAME_ALIGNMENT, *(state.row_bytes for state in states))
    stretched = aligned(frame_bytes, unit)
    near = stretched - frame_bytes <= STRETCH_TOLERANCE * frame_bytes
    return stretched if near else frame_bytes


def _place_class(members: Sequence[LayerRows], frame_bytes: int) -> LifetimeClass:
    """The class with as many tokens per frame as fit."""
    width, multiple = sum(row.row_bytes for row in members), _multiple(members)
    tokens = frame_bytes // width // multiple * multiple
    while _class_bytes(members, tokens) > frame_bytes:
        tokens -= multiple
    first = members[0]
    offsets, offset = [], 0
    for row in members:
        offsets.append(offset)
        offset += aligned(tokens * row.row_bytes, ROW_ALIGNMENT)
    return LifetimeClass(
        window=first.window,
        kind=first.kind,
        limit=first.limit,
        tokens_per_frame=tokens,
        layer_ids=tuple(row.layer_idx for row in members),
        row_bytes=tuple(row.row_bytes for row in members),
        offsets=tuple(offsets),
    )
