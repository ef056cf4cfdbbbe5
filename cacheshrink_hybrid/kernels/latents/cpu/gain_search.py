"""Finding the gain of a row, compiled (`codecs.gains` says by what)."""

import numpy as np

from ....codecs.gains import COARSE, LARGEST_CODE, OCTAVES, STEPS, TRIED, UNIT_CODE
from ....codecs.levels import EDGE_REACH, EDGE_STEPS, NUM_STEPS, UNIFORM_CLIP
from ....codecs.levels import UNIFORM_STEP as STEP
from ....codecs.row_layout import Kind
from ...host_code import compiled, compiled_in_order

UNIFORM8, LEVELS1 = Kind.UNIFORM8.number, Kind.LEVELS1.number
NUM_COARSE = OCTAVES * STEPS // COARSE
FIRST_TRIED, NUM_TRIED = TRIED[0], len(TRIED)
SCALE, SHIFT = np.float32(EDGE_STEPS), np.float32(EDGE_REACH * EDGE_STEPS)
LAST_STEP = np.float32(NUM_STEPS - 1)
UNIFORM_RANGE, UNIFORM_STEP = np.float32(2 * UNIFORM_CLIP), np.float32(STEP)
FIRST_UNIFORM = np.float32(STEP / 2 - UNIFORM_CLIP)


@compiled_in_order
def _places(kind, latent, gain, places):
    """Where the channels of a run, divided by their gain, lie: their steps, or their codes of 8
    bits, int32."""
    if kind == UNIFORM8:
        for c in range(latent.shape[0]):
            place = (latent[c] / gain / UNIFORM_RANGE + np.float32(0.5)) * np.float32(256)
            places[c] = np.int32(min(max(place, np.float32(0)), np.float32(255)))
    else:
        for c in range(latent.shape[0]):
            place = latent[c] / gain * SCALE + SHIFT
            places[c] = np.int32(min(max(place, np.float32(0)), LAST_STEP))


@compiled
def codes_of(kind, latent, gain, tables, places, codes):
    """Codes of the channels of a run, divided by their gain, uint8.

    Args:
        latent: the channels.
        places: room for an int32 per channel.
    """
    _places(kind, latent, gain, places)
    if kind == UNIFORM8:
        for c in range(latent.shape[0]):
            codes[c] = np.uint8(places[c])
    else:
        steps = tables.step_codes[LEVELS1 - kind]
        for c in range(latent.shape[0]):
            codes[c] = steps[np.uint32(places[c])]


@compiled
def _beyond(latent, costs, limit):
    """The loss beyond the outermost level of a run."""
    total = np.float32(0)
    for c in range(latent.shape[0]):
        over = max(abs(latent[c]) - limit, np.float32(0))
        total += costs[c] * over * over
    return total


@compiled
def _formula(latent, costs, coded, within, gain):
    """The loss of a row by the formula.

    Args:
        within: what lies within the levels loses at a gain of 1.
    """
    total = within * gain * gain
    for i in range(coded.shape[0]):
        first, end = coded[i].channel, coded[i].channel + coded[i].channels
        total += _beyond(latent[first:end], costs[first:end], coded[i].outermost * gain)
    return total


@compiled
def _run_error(kind, latent, costs, gain, tables, places):
    """The weighted error of a run, coded."""
    _places(kind, latent, gain, places)
    total = np.float32(0)
    if kind == UNIFORM8:
        for c in range(latent.shape[0]):
            level = np.float32(places[c]) * UNIFORM_STEP + FIRST_UNIFORM
            error = level * gain - latent[c]
            total += costs[c] * error * error
    else:
        levels = tables.step_levels[LEVELS1 - kind]
        for c in range(latent.shape[0]):
            error = levels[np.uint32(places[c])] * gain - latent[c]
            total += costs[c] * error * error
    return total


@compiled
def _error(latent, costs, coded, gain, tables, places):
    """The weighted error of a row, coded."""
    total = np.float32(0)
    for i in range(coded.shape[0]):
        first, end = coded[i].channel, coded[i].channel + coded[i].channels
        part, weights = latent[first:end], costs[first:end]
        total += _run_error(coded[i].kind, part, weights, gain, tables, places)
    return total


@compiled
def gain_code(latent, costs, coded, tables, places):
    """The code of a row's gain.

    Args:
        latent: finite, (R,).
        costs: of a squared error in each channel, (R,).
        coded: runs, see `CODED`.
        places: room for an int32 per channel.
    """
    reach = within = np.float32(0)
    for i in range(coded.shape[0]):
        largest = weight = np.float32(0)
        for c in range(coded[i].channel, coded[i].channel + coded[i].channels):
            largest = max(largest, abs(latent[c]))
            weight += costs[c]
        reach = max(reach, largest / coded[i].outermost)
        within += coded[i].distortion * weight
    highest = 0
    if reach > 0:
        highest = np.int64(np.ceil(np.float32(STEPS) * np.log2(reach))) + UNIT_CODE
        highest = min(max(highest, 0), LARGEST_CODE)
    likely, least = highest, np.float32(np.inf)
    for step in range(NUM_COARSE):
        code = max(highest - step * COARSE, 0)
        loss = _formula(latent, costs, coded, within, tables.gains[code])
        if loss < least:
            likely, least = code, loss
    found, least = max(likely + FIRST_TRIED, 0), np.float32(np.inf)
    for i in range(NUM_TRIED):
        code = min(max(likely + FIRST_TRIED + i, 0), LARGEST_CODE)
        loss = _error(latent, costs, coded, tables.gains[code], tables, places)
        if loss < least:
            found, least = code, loss
    return found
