"""Finding the gain of a row, compiled (`codecs.gains` says by what)."""

import numpy as np

from ....codecs.gains import COARSE, LARGEST_CODE, OCTAVES, STEPS, TRIED, UNIT_CODE
from ....codecs.levels import EDGE_REACH, EDGE_STEPS, NUM_STEPS, UNIFORM_CLIP
from ....codecs.row_layout import Kind
from ...host_code import compiled, compiled_in_order

UNIFORM8, LEVELS1 = Kind.UNIFORM8.number, Kind.LEVELS1.number
NUM_COARSE = OCTAVES * STEPS // COARSE
FIRST_TRIED, NUM_TRIED = TRIED[0], len(TRIED)
SCALE, SHIFT = np.float32(EDGE_STEPS), np.float32(EDGE_REACH * EDGE_STEPS)
LAST_STEP = np.float32(NUM_STEPS - 1)
UNIFORM_RANGE = np.float32(2 * UNIFORM_CLIP)


@compiled_in_order
def codes_of(kind, latent, first, channels, gain, tables, codes):
    """Codes of the channels of a run, divided by their gain, (channels,) uint8."""
    if kind == UNIFORM8:
        for c in range(channels):
            place = (latent[first + c] / gain / UNIFORM_RANGE + np.float32(0.5)) * np.float32(256)
            place = min(max(np.floor(place), np.float32(0)), np.float32(255))
            codes[c] = np.uint8(np.int32(place))
        return
    steps = tables.step_codes[LEVELS1 - kind]
    for c in range(channels):
        place = min(max(latent[first + c] / gain * SCALE + SHIFT, np.float32(0)), LAST_STEP)
        codes[c] = steps[np.uint32(np.int32(place))]


@compiled
def _formula(latent, costs, coded, gain):
    """The loss of a row by the formula."""
    total = np.float32(0)
    for i in range(coded.shape[0]):
        limit, first = coded[i].outermost * gain, coded[i].channel
        weight, beyond = np.float32(0), np.float32(0)
        for c in range(first, first + coded[i].channels):
            over = abs(latent[c]) - limit
            over = over if over > 0 else np.float32(0)
            beyond += costs[c] * over * over
            weight += costs[c]
        total += coded[i].distortion * weight * gain * gain + beyond
    return total


@compiled
def _error(latent, costs, coded, gain, tables, codes):
    """The weighted error of a row, coded."""
    total = np.float32(0)
    for i in range(coded.shape[0]):
        first, channels = coded[i].channel, coded[i].channels
        codes_of(coded[i].kind, latent, first, channels, gain, tables, codes)
        levels = tables.levels[LEVELS1 - coded[i].kind]
        for c in range(channels):
            error = levels[codes[c]] * gain - latent[first + c]
            total += costs[first + c] * error * error
    return total


@compiled
def gain_code(latent, costs, coded, tables, codes):
    """The code of a row's gain.

    Args:
        latent: finite, (R,).
        costs: of a squared error in each channel, (R,).
        coded: runs, see `CODED`.
        codes: room for a byte per channel.
    """
    reach = np.float32(0)
    for i in range(coded.shape[0]):
        for c in range(coded[i].channel, coded[i].channel + coded[i].channels):
            reach = max(reach, abs(latent[c]) / coded[i].outermost)
    highest = 0
    if reach > 0:
        highest = np.int64(np.ceil(np.float32(STEPS) * np.log2(reach))) + UNIT_CODE
        highest = min(max(highest, 0), LARGEST_CODE)
    likely, least = highest, np.float32(np.inf)
    for step in range(NUM_COARSE):
        code = max(highest - step * COARSE, 0)
        loss = _formula(latent, costs, coded, tables.gains[code])
        if loss < least:
            likely, least = code, loss
    found, least = max(likely + FIRST_TRIED, 0), np.float32(np.inf)
    for i in range(NUM_TRIED):
        code = min(max(likely + FIRST_TRIED + i, 0), LARGEST_CODE)
        loss = _error(latent, costs, coded, tables.gains[code], tables, codes)
        if loss < least:
            found, least = code, loss
    return found
