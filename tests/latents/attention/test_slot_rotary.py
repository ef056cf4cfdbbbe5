"""Which positions can be rotated by their slot in the cache, and which are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from cacheshrink_hybrid import make_cache
from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.attention.left_padding import check_padding
from cacheshrink_hybrid.latents.attention.rotation import of_length_one, turned_halves
from cacheshrink_hybrid.latents.attention.slot_rotary import SlotRotary, check_positions
from tests.families.tiny_configs import RECURRENT_CASES, tiny_model
from tests.models import pair, random_ids
from tests.tolerances import assert_same_computation

PAD_ON_THE_RIGHT = "pad on the left"
NOT_ONE_BY_ONE = "must continue it one by one"

ACCEPTED = {
    "nothing-given": (None, None, 4),
    "continued": ([[4, 5]], None, 4),
    "continued-with-mask": ([[4, 5]], [[1] * 6], 4),
    "left-padded": ([[2, 3], [4, 5]], [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], 4),
    "left-padded-without-positions": (None, [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], 4),
    "pad-reaches-into-the-new-tokens": ([[1, 0, 1]], [[0, 0, 0, 1, 1]], 2),
    "shifted-as-a-whole": ([[14, 15]], [[1] * 6], 4),
}
REFUSED = {
    "hole": ([[4, 5]], [[1, 1, 0, 1, 1, 1]], 4, PAD_ON_THE_RIGHT),
    "right-padded": ([[4, 5]], [[1, 1, 1, 1, 1, 0]], 4, PAD_ON_THE_RIGHT),
    "right-padded-prefix": ([[2, 3]], [[1, 1, 0, 0, 1, 1]], 4, PAD_ON_THE_RIGHT),
    "one-row-of-two": ([[4], [4]], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 1]], 4, PAD_ON_THE_RIGHT),
    "jump": ([[9, 10]], None, 4, NOT_ONE_BY_ONE),
    "jump-within": ([[4, 6]], [[1] * 6], 4, NOT_ONE_BY_ONE),
    "standing-still": ([[4, 4]], None, 4, NOT_ONE_BY_ONE),
    "backwards": ([[5, 4]], [[1] * 6], 4, NOT_ONE_BY_ONE),
    "restart": ([[0, 1]], None, 4, NOT_ONE_BY_ONE),
}


def tensor(values: list | None) -> Tensor | None:
    return None if values is None else torch.tensor(values)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    positions, mask, past = ACCEPTED[name]
    check_padding(tensor(mask))
    check_positions(tensor(positions), tensor(mask), past)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    positions, mask, past, message = REFUSED[name]
    with pytest.raises(NotSupportedError, match=message):
        check_padding(tensor(mask))
        check_positions(tensor(positions), tensor(mask), past)


def after_four_tokens(case: str):
    states = {"state_dtype": "float32"} if case in RECURRENT_CASES else {}
    model = pair(case, **states).converted
    cache = make_cache(model)
    with torch.no_grad():
        model(random_ids(1, 4), use_cache=True, **{cache_argument(model.forward): cache})
    return model, cache


PACKED_OR_PADDED = {
    "packed": {"position_ids": torch.tensor([[0, 1, 2, 0, 1]])},
    "right-padded": {"attention_mask": torch.tensor([[1, 1, 1, 0, 0]])},
}


@pytest.mark.parametrize("name", PACKED_OR_PADDED)
@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_a_first_pass_takes_any_rows(case: str, name: str) -> None:
    source, model = pair(case).both()
    given = PACKED_OR_PADDED[name]
    with torch.no_grad():
        due, found = (one(random_ids(1, 5), **given).logits[:, :3] for one in (source, model))
    assert_same_computation(found, due)


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "one-row-of-two"])
def test_forward_refuses_and_leaves_the_cache(name: str) -> None:
    positions, mask, _, message = REFUSED[name]
    model, cache = after_four_tokens("llama")
    with pytest.raises(NotSupportedError, match=message):
        model(
            random_ids(1, 2),
            position_ids=tensor(positions),
            attention_mask=tensor(mask),
            past_key_values=cache,
        )
    assert cache.get_seq_length() == 4


def test_forward_refuses_positional_arguments_too() -> None:
    """forward(input_ids, attention_mask, position_ids, past_key_values) without names."""
    model, cache = after_four_tokens("llama")
    with pytest.raises(NotSupportedError, match=NOT_ONE_BY_ONE):
        model(random_ids(1, 2), None, torch.tensor([[9, 10]]), cache)


def test_inner_model_refuses_too() -> None:
    """Called without its language modelling head, as feature extraction does."""
    model, cache = after_four_tokens("llama")
    with pytest.raises(NotSupportedError, match=NOT_ONE_BY_ONE):
        model.model(
            input_ids=random_ids(1, 2),
            position_ids=torch.tensor([[9, 10]]),
            past_key_values=cache,
        )


RIGHT_PADDED = torch.tensor([[1, 1, 1, 0, 1, 1]])


@pytest.mark.parametrize("case", ["jamba", "bamba", "olmo_hybrid-nope", "lfm2", "mamba2", "mamba"])
def test_states_refuse_padding_on_the_right(case: str) -> None:
    """Whether their states are converted or not: they have taken the padding in."""
    model, cache = after_four_tokens(case)
    more = {cache_argument(model.forward): cache}
    with pytest.raises(NotSupportedError, match=PAD_ON_THE_RIGHT):
        model(random_ids(1, 2), attention_mask=RIGHT_PADDED, **more)


@pytest.mark.parametrize("case", ["gpt2", "opt"])
def test_models_without_rotation_or_states_take_padding_on_the_right(case: str) -> None:
    results = []
    for model in pair(case).both():
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(random_ids(1, 4), attention_mask=RIGHT_PADDED[:, :4], past_key_values=cache)
            positions = torch.tensor([[3, 4]])
            output = model(
                random_ids(1, 2),
                attention_mask=RIGHT_PADDED,
                position_ids=positions,
                past_key_values=cache,
            )
        results.append(output.logits)
    assert_same_computation(results[1], results[0])


@pytest.mark.parametrize("case", ["gpt2", "opt", "olmo_hybrid-nope"])
def test_models_without_rotation_take_any_positions(case: str) -> None:
    model, cache = after_four_tokens(case)
    model(random_ids(1, 2), position_ids=torch.tensor([[9, 10]]), past_key_values=cache)


def rotaries(case: str) -> list[tuple[SlotRotary, int]]:
    """The rotations of a model's layers, and the width of their heads."""
    model = tiny_model(case)
    parts = read_attention(model, model_spec(model.config))
    return [(part.rotary, part.head_dim) for part in parts if part.rotary is not None]


@pytest.mark.parametrize("case", ["llama", "gpt_neox", "phi3-partial", "gemma3_text", "qwen3_next"])
def test_rotation_keeps_lengths_and_depends_on_differences_only(case: str) -> None:
    for rotary, head_dim in rotaries(case):
        x = torch.randn(1, 2, 1, head_dim).expand(1, 2, 12, head_dim)
        y = torch.randn(1, 2, 1, head_dim).expand(1, 2, 12, head_dim)
        cos, sin = rotary.angles(12, x)
        turned, other = rotary.rotate(x, cos, sin), rotary.rotate(y, cos, sin)
        assert_same_computation(turned.norm(dim=-1), x.norm(dim=-1))
        scores = turned @ other.transpose(2, 3)
        for distance in range(12):
            same = scores.diagonal(distance, 2, 3)
            assert_same_computation(same, same[..., :1].expand_as(same))


@pytest.mark.parametrize(("case", "kinds"), [("llama", 1), ("gemma3_text", 2)])
def test_layers_that_are_rotated_alike_share_their_angles(case: str, kinds: int) -> None:
    found = [rotary for rotary, _ in rotaries(case)]
    assert len({id(rotary) for rotary in found}) == kinds < len(found)


def test_windows_of_one_step_are_worked_out_once() -> None:
    """Layers with and without a sliding window take turns."""
    rotary, head_dim = rotaries("llama")[0]
    query = torch.zeros(1, 2, 1, head_dim)
    windows = [rotary.window_angles(9, *window, query) for window in [(0, 10), (6, 4)] * 2]
    assert windows[2] is windows[0] and windows[3] is windows[1]
    turns = [rotary.turns(*keys) for _, keys in windows]
    assert turns[2] is turns[0] and turns[3] is turns[1]
    assert torch.equal(turns[1], turns[0][:, 6:])


def test_kept_angles_follow_dtype_and_length() -> None:
    rotary, _ = rotaries("llama")[0]
    short = rotary.angles(4, torch.zeros(1))[0]
    long = rotary.angles(50, torch.zeros(1))[0]
    assert torch.equal(long[:, :4], short)
    assert rotary.angles(5, torch.zeros(1, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
    assert rotary.angles(5, torch.zeros(1))[0].dtype == torch.float32


def test_blocks_are_turned_back_to_their_first_slot() -> None:
    """By rotations as long as the model's, and in float32."""
    rotary, head_dim = rotaries("llama-yarn")[0]
    like = torch.zeros(1, dtype=torch.bfloat16)
    short = rotary.block_angles(40, head_dim // 2, 16, like)
    cos, sin = rotary.block_angles(100, head_dim // 2, 16, like)
    assert cos.dtype == torch.float32 and len(short[0]) >= 3 and len(cos) >= 7
    assert torch.equal(cos[:3], short[0][:3])
    assert rotary.block_angles(90, head_dim // 2, 16, like)[0] is cos
    x = torch.randn(1, 1, 1, head_dim)
    far, near = (
        rotary.rotate(x, *(angle[:, slot : slot + 1] for angle in rotary.angles(100, x)))
        for slot in (85, 5)
    )
    length = torch.hypot(cos[0, 0], sin[0, 0])
    assert length > 1.01
    back = (torch.cat([angle[5:6], angle[5:6]], dim=1)[None] for angle in (cos, sin))
    due = length * near
    torch.testing.assert_close(turned_halves(far, *back), due, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["llama", "llama-yarn", "gpt_neox"])
def test_places_are_the_slots_of_the_first_block(case: str) -> None:
    """Of length one; at a number, at one that is counted on the device, and at one per sequence."""
    rotary, head_dim = rotaries(case)[0]
    x = torch.randn(2, 1, 6, head_dim)
    table = of_length_one(*rotary.angles(16, x))
    for first in (3, 13, torch.tensor(29), torch.tensor([[2], [30]])):
        at = ((torch.arange(6) + first) % 16).expand(2, 6)
        due = rotary.rotate(x, *(angle[0, at] for angle in table))
        found = rotary.rotate(x, *rotary.place_angles(first, 6, 16, x))
        assert_same_computation(found, due)


def test_angles_of_a_growing_text_are_not_kept_where_they_change() -> None:
    rotary, _ = rotaries("phi3-longrope")[0]
    short = rotary.angles(100, torch.zeros(1))[0]
    long = rotary.angles(200, torch.zeros(1))[0]
    assert not torch.allclose(long[:, :100], short)
    assert torch.equal(rotary.angles(100, torch.zeros(1))[0], short)


@pytest.mark.parametrize("case", ["llama", "phi3-partial", "glm", "cohere2", "ernie4_5"])
def test_pairs_of_channels_turn_by_the_angles_that_are_named(case: str) -> None:
    rotary, head_dim = rotaries(case)[0]
    pairs = rotary.rotated_pairs(head_dim)
    assert pairs is not None
    assert pairs.neighbours == (case not in ("llama", "phi3-partial"))
    key = torch.randn(1, 1, 9, head_dim)
    cos, sin = rotary.angles(9, key)
    own = torch.arange(pairs.width // 2) * pairs.angle_step
    turn = torch.complex(cos[..., own], sin[..., own])
    channels = torch.arange(pairs.width)
    first, second = channels.view(-1, 2).T if pairs.neighbours else channels.view(2, -1)
    due = torch.complex(key[..., first], key[..., second]) * turn
    turned = rotary.rotate(key, cos, sin)
    torch.testing.assert_close(torch.complex(turned[..., first], turned[..., second]), due)
    assert torch.equal(turned[..., pairs.width :], key[..., pairs.width :])
