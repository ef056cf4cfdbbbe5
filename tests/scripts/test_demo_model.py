"""Parts of the training of the shipped model."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.families import model_spec
from scripts.demo_model.architectures import ARCHITECTURES, build_model
from scripts.demo_model.characters import build_tokenizer, encode
from scripts.demo_model.orthogonal_momentum import OrthogonalMomentum, polar_factor
from scripts.demo_model.sequences import Curriculum, SequenceMixer

TEXT = "A sentence that goes on.\nAnother one, which is a little longer than the first.\n" * 40


WITH_MAMBA = [name for name, one in sorted(ARCHITECTURES.items()) if one.mixer is not None]


@pytest.mark.parametrize("name", WITH_MAMBA)
def test_fast_mamba_is_that_of_transformers(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = build_model(architecture, seed=0).eval()
    ids = torch.randint(3, 90, (2, 192), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stock = model(ids, use_cache=False).logits
        with architecture.faster():
            fast = model(ids, use_cache=False).logits
    torch.testing.assert_close(fast, stock, atol=5e-5, rtol=1e-4)
    assert not torch.equal(fast, stock)  # it did run other code


def test_models_without_mamba_are_as_transformers_has_them() -> None:
    architecture = ARCHITECTURES["mla"]
    model = build_model(architecture, seed=0).eval()
    ids = torch.randint(3, 90, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stock = model(ids, use_cache=False).logits
        with architecture.faster():
            assert torch.equal(model(ids, use_cache=False).logits, stock)
    assert model_spec(model.config).caches_latents


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)], ids=str)
def test_polar_factor_keeps_directions_and_drops_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(polar_factor(matrix), left @ right, atol=1e-4, rtol=1e-3)
    assert torch.equal(polar_factor(torch.zeros(shape)), torch.zeros(shape))


def test_orthogonal_momentum_descends() -> None:
    target = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    optimizer = OrthogonalMomentum([weight], lr=0.1, weight_decay=0.0)
    losses = []
    for _ in range(150):
        loss = (weight - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) == 1:
            assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=1e-3)
    assert losses[-1] < 0.05 * losses[0]


def test_what_returns_stood_there_before() -> None:
    mixer = SequenceMixer([TEXT], Curriculum(num_chars=12, gap=40), seed=0)
    batch = mixer.batch((4, 400))
    assert batch.ids.shape == (4, 401)
    answers = (batch.kinds >= 0).nonzero()
    assert len(answers) > 20
    letters = [(row, at) for row, at in answers.tolist() if batch.kinds[row, at] == 0]
    # A letter that counts as an answer is the one that many tokens before it, a line break aside.
    for row, at in letters:
        distance = int(batch.distances[row, at])
        earlier = batch.ids[row, : at + 1].tolist()
        assert int(batch.ids[row, at + 1]) in earlier[max(0, at - 2 * distance - 80) :]


def test_a_curriculum_moves_on_with_success_only() -> None:
    curriculum = Curriculum()
    curriculum.report(100, 1600)
    assert (curriculum.num_chars, curriculum.gap) == (6, 0)
    for _ in range(3):
        curriculum.report(1600, 1600)
    assert curriculum.num_chars >= 12
    assert curriculum.gap > 0


def test_tokenizer_gives_one_token_per_character() -> None:
    text = "Some text, 12 ~"
    tokenizer = build_tokenizer()
    ids = tokenizer(text).input_ids
    assert ids == [tokenizer.bos_token_id, *encode(text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
