"""Which kind of latent the objectives choose, by loss and time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.device_profile import DeviceProfile
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.latents.fit.choice import Candidate, Choice, Reader, chosen_kinds, preferred
from cacheshrink_hybrid.latents.fit.factors import KeyShape
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids
from tests.moments import random_unit

J, D, H = 2, 32, 4


def _choice(
    objective: str,
    bandwidth: float,
    matrix_rate: float,
    loss: float = 1.0,
    *,
    of_values: float = 1.0,
    fused: bool = True,
    **shape,
) -> Choice:
    """What is chosen for a module whose losses are scaled by `loss`, those of values by `of_values`
    as well."""
    angles = torch.arange(64)[:, None] * 0.1 ** torch.arange(D // 2).double()
    shape = {"rotary_dim": D, "block_angles": angles, **shape}
    keys = KeyShape(num_heads=J, head_dim=D, **shape)
    unit = random_unit(J * D, 1)
    scale = torch.ones(2 * J * D, dtype=torch.float64)
    scale[J * D :] = of_values**0.5
    metric = loss * unit.metric * scale * scale[:, None]
    (choice,) = chosen_kinds(
        [replace(unit, keys=keys, metric=metric)],
        [None],
        [Reader(num_heads=H, read_mode="reconstruct")],
        (2, 4, 8, 16),
        60,
        [RowFormat()],
        CompressionConfig(objective=objective),
        DeviceProfile(name="x", bandwidth=bandwidth, matrix_rate=matrix_rate, fused=fused),
    )
    return choice


def _chosen(*args, **kwargs) -> str:
    return _choice(*args, **kwargs).taken.full[0].method


def test_where_bytes_bound_the_joint_latent_loses_least() -> None:
    assert _chosen("speed", bandwidth=1.0, matrix_rate=1e9) == "joint"


def test_where_operations_bound_keys_are_not_rebuilt_from_the_joint_latent() -> None:
    assert _chosen("speed", bandwidth=1e9, matrix_rate=1.0) == "rotate"
    assert _chosen("speed", 1e9, 1.0, cannot_rotate="no") == "per_head"


def test_auto_takes_what_is_faster_where_that_loses_next_to_nothing() -> None:
    """Of kinds that store rotated keys the one that shares channels with values; otherwise keys by
    head, which are rebuilt by fewer products."""
    assert _chosen("auto", 1e9, 1.0, loss=1e-9) == "rotate_joint"
    assert _chosen("auto", 1e9, 1.0, loss=1e-9, cannot_rotate="no") == "per_head"
    assert _chosen("auto", 1e9, 1.0, loss=1e9) == "joint"
    assert _chosen("auto", 1.0, 1e9, loss=1e-9) == "joint"  # as no kind is read faster


def test_auto_tries_all_kinds_where_rows_are_read_in_passes() -> None:
    """Of keys apart from values, each pass reads its own channels."""
    assert _chosen("auto", 1e9, 1.0, loss=1e-9, fused=True) == "rotate_joint"
    assert _chosen("auto", 1e9, 1.0, loss=1e-9, fused=False) == "rotate"


def test_latents_that_no_kernel_reads_are_not_chosen() -> None:
    """Of values that are worth nothing, kinds apart would keep no channel."""
    assert _chosen("speed", 1e9, 1.0, of_values=1e-30) == "rotate_joint"


def test_auto_does_not_pay_for_speed_with_much_loss() -> None:
    # These moments correlate across heads and frequencies, all of which turn far within a block, so
    # that only the joint latent uses it.
    angles = torch.arange(64)[:, None] * torch.linspace(1, 2, D // 2).double()
    joint = _choice("auto", 1e9, 1.0, block_angles=angles).joint
    some = 0.01 / joint.loss  # nats, of which a whole model may lose as many
    assert _chosen("auto", 1e9, 1.0, loss=some, block_angles=angles) == "joint"
    assert _chosen("speed", 1e9, 1.0, loss=some, block_angles=angles) != "joint"


def _candidate(name: str, **values: float) -> Candidate:
    return Candidate(full=cast(Any, name), coded=cast(Any, None), **values)


def _preferred(*losses: tuple[float, float], **settings) -> list[str]:
    """What is preferred for modules whose joint latent loses the first number of nats, and whose
    rotated keys, which are read in a tenth of the time, lose the second."""
    found = [
        [
            _candidate("joint", loss=joint, seconds=10.0),
            _candidate("rotate", loss=rotate, seconds=1.0),
        ]
        for joint, rotate in losses
    ]
    config = CompressionConfig(**settings)
    return [str(candidate.full) for candidate in preferred(found, config)]


def test_auto_pays_for_speed_up_to_twice_the_loss_of_a_model_and_of_a_layer() -> None:
    assert _preferred((2e-3, 3e-3), (2e-3, 4.1e-3)) == ["rotate", "joint"]
    assert _preferred((2e-3, 3e-3), (2e-3, 6e-3)) == ["joint", "joint"]


def test_auto_pays_for_speed_while_the_whole_model_loses_little() -> None:
    """Up to 0.02 nats per token, where it loses the least first."""
    assert _preferred((5e-3, 9e-3), (5e-3, 8e-3)) == ["rotate", "rotate"]
    assert _preferred((6e-3, 11e-3), (6e-3, 10e-3)) == ["joint", "rotate"]
    assert _preferred((10e-3, 11e-3), (10.1e-3, 11e-3)) == ["joint", "joint"]
    assert _preferred((1.0, 9.0), objective="speed") == ["rotate"]


def test_auto_pays_any_factor_while_the_whole_model_loses_next_to_nothing() -> None:
    """Up to 0.0002 nats per token, where it loses the least first."""
    assert _preferred((1e-6, 5e-5), (1e-6, 1.4e-4)) == ["rotate", "rotate"]
    assert _preferred((1e-5, 1.8e-4), (1e-5, 1.2e-4)) == ["joint", "rotate"]


def test_auto_keeps_joint_latents_where_losses_are_no_nats() -> None:
    assert _preferred((1e-4, 1.1e-4), metric="activation") == ["joint"]
    assert _preferred((1e-4, 1.1e-4), metric="activation", objective="speed") == ["rotate"]


def test_where_joint_is_chosen_throughout_the_plan_is_that_of_memory() -> None:
    plans = [
        convert_model(
            tiny_model("llama"),
            CompressionConfig(metric="activation", objective=objective),
            calibration_ids(12),
            self_check=False,
        )
        for objective in ("auto", "memory")
    ]
    chosen, due = (
        [(latent.method, latent.runs, latent.predicted_loss) for latent in plan.latents]
        for plan in plans
    )
    assert chosen == due
    assert all(latent.joint_loss == latent.held_out_loss for latent in plans[0].latents)
    assert all(latent.joint_loss is None for latent in plans[1].latents)


def test_the_plan_says_what_was_chosen_and_beside_what() -> None:
    source = tiny_model("llama")
    spec = model_spec(source.config)
    config = CompressionConfig(exact_sinks=0, exact_window=0, compression_ratio=1.5)
    plan = convert_model(source, config, calibration_ids(12), self_check=False)
    methods = {latent.method for latent in plan.latents}
    assert methods == {"rotate_joint"}  # which the CPU reads faster, and little is lost at 1.5
    for latent in plan.latents:
        assert latent.joint_loss is not None and latent.joint_read_ns is not None
        assert latent.read_ns < latent.joint_read_ns
    number = len(plan.latents)
    assert f"kinds by loss and speed: rotate_joint in {number} of {number} layers" in (
        plan.table(spec)
    )
    assert "by the model of CPU" in plan.table(spec)
    assert "joint's loss" in plan.table(spec)


def test_layers_without_rotation_stay_joint() -> None:
    assert _chosen("speed", 1e9, 1.0, rotary_dim=0, cannot_rotate="not rotated") == "joint"
