"""Device functions that find the gains of rows (`codecs.gains` says by what), and code numbers."""

import triton
import triton.language as tl

from ....codecs import gains, levels
from ...numerics import constant
from ..row_tile import FIRST_GAIN, UNIFORM8

UNIT_CODE = tl.constexpr(gains.UNIT_CODE)
LARGEST_CODE = tl.constexpr(gains.LARGEST_CODE)
STEPS = tl.constexpr(gains.STEPS)
COARSE = tl.constexpr(gains.COARSE)
NUM_COARSE = tl.constexpr(gains.OCTAVES * gains.STEPS // gains.COARSE)
FIRST_TRIED = tl.constexpr(gains.TRIED[0])
NUM_TRIED = tl.constexpr(len(gains.TRIED))
EDGE_STEPS = tl.constexpr(levels.EDGE_STEPS)
EDGE_REACH = tl.constexpr(levels.EDGE_REACH)
UNIFORM_CLIP = tl.constexpr(levels.UNIFORM_CLIP)
UNIFORM_STEP = tl.constexpr(levels.UNIFORM_STEP)
LAST_STEP = tl.constexpr(levels.NUM_STEPS - 1)


@triton.jit
def codes_of(x, p_steps, PIECE: tl.constexpr):
    """Codes of numbers that are divided by their gains, int32.

    Args:
        p_steps: `step_tables`.
    """
    if PIECE.kind == UNIFORM8:
        position = (tl.div_rn(x, 2.0 * UNIFORM_CLIP) + 0.5) * 256
        return tl.maximum(tl.minimum(position, 255.0), 0.0).to(tl.int32)
    else:
        step = x * EDGE_STEPS + EDGE_REACH * EDGE_STEPS
        step = tl.maximum(tl.minimum(step, LAST_STEP), 0.0).to(tl.int32)
        return tl.load(p_steps + PIECE.levels.first_step + step).to(tl.int32)


@triton.jit
def _rounded_levels(x, p_tables, p_steps, PIECE: tl.constexpr):
    """The level of each number, float32."""
    code = codes_of(x, p_steps, PIECE)
    if PIECE.kind == UNIFORM8:
        return code.to(tl.float32) * UNIFORM_STEP + (0.5 * UNIFORM_STEP - UNIFORM_CLIP)
    else:
        return tl.load(p_tables + PIECE.levels.first + code)


@triton.jit
def _likely(tiles, weights, p_tables, PIECES: tl.constexpr, BLOCK_T: tl.constexpr):
    """Codes (T,) where the formula is least, of those that it is looked at for."""
    reach = tl.zeros([BLOCK_T], tl.float32)
    within = 0.0
    for i in tl.static_range(len(PIECES)):
        largest = tl.max(tl.abs(tiles[i]), 1)
        reach = tl.maximum(reach, tl.div_rn(largest, PIECES[i].levels.outermost))
        within += PIECES[i].levels.distortion * tl.sum(weights[i], 0)
    reach = tl.maximum(reach, 1e-30)  # tokens of zeros have a logarithm too
    highest = tl.ceil(tl.log2(reach) * STEPS) + UNIT_CODE
    highest = tl.maximum(tl.minimum(highest, LARGEST_CODE), 0.0).to(tl.int32)
    least = tl.full([BLOCK_T], float("inf"), tl.float32)
    likely = highest
    for step in range(NUM_COARSE):
        code = tl.maximum(highest - step * COARSE, 0)
        gain = tl.load(p_tables + FIRST_GAIN + code)
        formula = within * (gain * gain)
        for i in tl.static_range(len(PIECES)):
            limit = gain * PIECES[i].levels.outermost
            beyond = tl.maximum(tl.abs(tiles[i]) - limit[:, None], 0.0)
            formula += tl.sum(beyond * beyond * weights[i][None, :], 1)
        likely = tl.where(formula < least, code, likely)
        least = tl.minimum(formula, least)
    return likely


@triton.jit
def gain_codes(tiles, weights, p_tables, p_steps, PIECES: tl.constexpr, BLOCK_T: tl.constexpr):
    """Gain codes (T,), int32, of finite latents.

    Args:
        tiles: the channels of each piece, (T, WIDTH) float32, zero behind the valid ones.
        weights: costs of a squared error in them, (WIDTH,) float32, zero behind the valid ones.
        p_tables: `row_tables`.
        p_steps: `step_tables`.
        PIECES: coded ones.
    """
    likely = _likely(tiles, weights, p_tables, PIECES, BLOCK_T)
    least = tl.full([BLOCK_T], float("inf"), tl.float32)
    found = tl.maximum(likely + FIRST_TRIED, 0)
    for i_tried in range(NUM_TRIED):
        code = likely + i_tried + FIRST_TRIED
        code = tl.minimum(tl.maximum(code, 0), LARGEST_CODE)
        gain = tl.load(p_tables + FIRST_GAIN + code)[:, None]
        error = tl.zeros([BLOCK_T], tl.float32)
        for i in tl.static_range(len(PIECES)):
            near = _rounded_levels(
                tl.div_rn(tiles[i], gain), p_tables, p_steps, constant(PIECES[i])
            )
            difference = near * gain - tiles[i]
            error += tl.sum(difference * difference * weights[i][None, :], 1)
        found = tl.where(error < least, code, found)
        least = tl.minimum(error, least)
    return found
