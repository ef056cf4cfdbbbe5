"""Each metric against its definition, written out with autograd and loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cacheshrink_hybrid.calibration.calibrate import LatentStatistics, calibrate
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.attention.parts import AttentionParts
from cacheshrink_hybrid.latents.fit.metrics import Labels
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids

pytestmark = pytest.mark.usefixtures("float32_products")
RELATIVE = 1e-4
SEED = 11


def run(
    model, metric: str, sequences=None, labels: str = "model", sinks: int = 0
) -> list[LatentStatistics]:
    parts = read_attention(model, model_spec(model.config))
    given = calibration_ids() if sequences is None else sequences
    return calibrate(
        model,
        parts,
        given,
        metric=metric,
        labels=Labels(labels, SEED),
        sinks=[sinks] * len(parts),
    )


def parts_of(model) -> list[AttentionParts]:
    return read_attention(model, model_spec(model.config))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((actual.double() - expected.double()).abs().max()) < RELATIVE * scale


def recorded_outputs(parts: AttentionParts, store: dict) -> list:
    """Hooks that keep the outputs of the key and value projections, by layer and half."""
    handles = []
    for layer_idx, source in parts.sources.items():
        for half, projection in enumerate((parts.key, parts.value)):

            def keep(module, args, output, key=(layer_idx, half)):
                store[key] = output

            handles.append(getattr(source, projection.name).register_forward_hook(keep))
    return handles


def selected(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return (tensor if rows is None else tensor[..., rows]).flatten(0, 1)


@pytest.mark.parametrize(
    ("case", "source", "sinks"),
    [
        ("llama", "model", 0),
        ("llama", "text", 0),
        ("llama", "text", 4),
        ("llama-mqa", "model", 0),
        ("gpt2", "text", 2),
        ("gpt_neox", "model", 0),
        ("qwen3_next", "text", 4),
        ("zamba", "model", 4),
        ("mistral-window", "model", 0),
    ],
)
def test_fisher_is_the_second_moment_of_the_gradients(case: str, source: str, sinks: int) -> None:
    model = tiny_model(case)
    sequences = calibration_ids(3, 10)
    actual = run(model, "fisher", sequences, source, sinks)
    generator = torch.Generator().manual_seed(SEED)
    parts = parts_of(model)
    stores: list[dict] = [{} for _ in parts]
    handles = [h for part, store in zip(parts, stores, strict=True)
               for h in recorded_outputs(part, store)]  # fmt: skip
    gradients: list[list[Tensor]] = [[] for _ in parts]
    values: list[list[Tensor]] = [[] for _ in parts]
    for ids in sequences:
        logits = model(ids, use_cache=False).logits[0]
        if source == "model":
            labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        else:
            loss = nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum")
        for part, store, rows, seen in zip(parts, stores, gradients, values, strict=True):
            for layer_idx in part.layer_ids:
                outputs = [store[layer_idx, half] for half in (0, 1)]
                got = torch.autograd.grad(loss, outputs, retain_graph=True)
                halves = (part.key.rows, part.value.rows)
                both = [selected(g, r) for g, r in zip(got, halves, strict=True)]
                rows.append(torch.cat(both, dim=1)[sinks:])
                both = [selected(y, r) for y, r in zip(outputs, halves, strict=True)]
                seen.append(torch.cat(both, dim=1)[sinks:])
    for handle in handles:
        handle.remove()
    for statistics, rows, seen in zip(actual, gradients, values, strict=True):
        g, y = torch.cat(rows).double(), torch.cat(seen).detach().double()
        assert statistics.num_tokens == len(g)
        assert_close(statistics.metric, 0.5 * g.T @ g / len(g))
        assert_close(statistics.mean, y.mean(0))
        assert_close(statistics.covariance, torch.cov(y.T, correction=0))


@pytest.mark.slow
def test_fisher_predicts_the_growth_of_the_loss() -> None:
    """e^T M e is the expected divergence from the model's own predictions, in nats per token, of
    a small error e at one token's keys and values, summed over all tokens it reaches."""
    model = tiny_model("llama")
    sequences = calibration_ids(200, 12)
    statistics = run(model, "fisher", sequences)[1]
    attention = model.model.layers[1].self_attn
    generator = torch.Generator().manual_seed(0)
    measured, predicted = 0.0, 0.0
    with torch.no_grad():
        for ids in sequences[:60]:
            before = model(ids, use_cache=False).logits[0].double().log_softmax(-1)
            error = 0.05 * torch.randn(12, 32, generator=generator)
            predicted += float(torch.einsum("ti,ij,tj->", *(error.double(), statistics.metric),
                                            error.double()))  # fmt: skip
            handles = [
                getattr(attention, name).register_forward_hook(
                    lambda module, args, output, part=part, error=error: (
                        output + error[None, :, part]
                    )
                )
                for name, part in (("k_proj", slice(0, 16)), ("v_proj", slice(16, 32)))
            ]
            after = model(ids, use_cache=False).logits[0].double().log_softmax(-1)
            for handle in handles:
                handle.remove()
            measured += float((before.exp() * (before - after)).sum())
    assert measured == pytest.approx(predicted, rel=0.25)


def attention_inputs(model, source: nn.Module, sequences) -> list[Tensor]:
    seen: list[Tensor] = []
    handle = source.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or [kwargs["hidden_states"]])[0].detach()),
        with_kwargs=True,
    )
    with torch.no_grad():
        for ids in sequences:
            model(ids, use_cache=False)
    handle.remove()
    return seen


def in_proportion(actual: list[float], expected: list[float]) -> None:
    ratios = torch.tensor(actual).double() / torch.tensor(expected).double()
    assert float(ratios.max() / ratios.min()) < 1 + RELATIVE


def test_score_of_one_head_without_rotation() -> None:
    """Keys: E (q . e)^2. Values: |W_o e|^2. Each scaled to a total expected loss of one."""
    model = tiny_model("gpt2", n_head=1)
    sequences = calibration_ids(3, 10)
    parts = parts_of(model)[1]
    statistics = run(model, "score", sequences)[1]
    D = parts.head_dim
    inputs = torch.cat([x.flatten(0, 1) for x in attention_inputs(model, parts.source, sequences)])
    queries = nn.functional.linear(inputs, parts.query.weight(), parts.query.bias()).double()
    errors = torch.randn(6, D).double()
    in_proportion(
        [float(e @ statistics.metric[:D, :D] @ e) for e in errors],
        [float((queries @ e).square().mean()) for e in errors],
    )
    output = model.transformer.h[1].attn.c_proj.weight.double()  # (D, E), transposed
    in_proportion(
        [float(e @ statistics.metric[D:, D:] @ e) for e in errors],
        [float((e @ output).square().sum()) for e in errors],
    )
    for part in (slice(0, D), slice(D, 2 * D)):
        total = torch.sum(statistics.metric[part, part] * statistics.covariance[part, part])
        assert float(total) == pytest.approx(1.0, rel=RELATIVE)
    assert float(statistics.metric[:D, D:].abs().max()) == 0


def test_score_of_values_behind_which_a_norm_comes() -> None:
    """|W_o (g * e)|^2 with the norm's gains g: the length that it divides by is left out."""
    model = tiny_model("bitnet", num_attention_heads=1, num_key_value_heads=1)
    attention = model.model.layers[1].self_attn
    statistics = run(model, "score", calibration_ids(3, 10))[1]
    D = attention.head_dim
    gains, output = (x.weight.double() for x in (attention.attn_sub_norm, attention.o_proj))
    errors = torch.randn(6, D).double()
    in_proportion(
        [float(e @ statistics.metric[D:, D:] @ e) for e in errors],
        [float((output @ (gains * e)).square().sum()) for e in errors],
    )


def test_score_with_rotation_is_averaged_over_distances() -> None:
    """E ((R_p q) . (R_(p-d) e))^2 over the queries of all heads and the distances d."""
    length = 10
    model = tiny_model("llama-mqa")
    sequences = calibration_ids(3, length)
    parts = parts_of(model)[1]
    statistics = run(model, "score", sequences)[1]
    D, H = parts.head_dim, parts.num_attention_heads
    inputs = torch.cat([x.flatten(0, 1) for x in attention_inputs(model, parts.source, sequences)])
    queries = nn.functional.linear(inputs, parts.query.weight()).view(1, -1, D)
    queries = queries.expand(1, -1, D)[:, None]  # (1, 1, tokens * H, D)
    cos, sin = model.model.rotary_emb(queries, torch.arange(length)[None])

    def rotated(x: Tensor, position: int) -> Tensor:
        at = slice(position, position + 1)
        return parts.rotary.apply(x, x, cos[:, at], sin[:, at])[0].double()

    turned = rotated(queries, length - 1)
    errors = torch.randn(6, D)
    expected = []
    for e in errors:
        total = 0.0
        for distance in range(length):
            key = rotated(e.view(1, 1, 1, D), length - 1 - distance)
            total += float((turned * key).sum(-1).square().mean())
        expected.append(total)
    assert H > 1
    in_proportion([float(e.double() @ statistics.metric[:D, :D] @ e.double()) for e in errors],
                  expected)  # fmt: skip


def test_activation_is_plain_pca() -> None:
    for statistics in run(tiny_model("llama"), "activation"):
        assert torch.equal(statistics.metric, torch.eye(32, dtype=torch.float64))


@pytest.mark.parametrize("case", ["qwen3", "olmo2", "gpt_neox", "qwen3_next", "zamba2-adapters"])
def test_score_is_positive_semidefinite_for_every_kind_of_query(case: str) -> None:
    for statistics in run(tiny_model(case), "score"):
        values = torch.linalg.eigvalsh(statistics.metric)
        assert float(values[0]) > -1e-9 * float(values[-1])
        assert float(values[-1]) > 0
