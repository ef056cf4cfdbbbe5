"""What each layer gets, and what it costs in bytes: the result of a conversion, as plain data.

A `CompressionPlan` holds everything that is needed to rebuild the latent modules around a source
config; the weights come from the checkpoint. It prints as a table and travels as JSON.
"""

from .latent import CROP_SLACK, READ_MODES, ChannelRun, LatentPlan
from .model import CompressionPlan
from .state import StatePlan, ring_bytes_per_token
from .table import fitting_table, format_table

__all__ = [
    "CROP_SLACK",
    "READ_MODES",
    "ChannelRun",
    "CompressionPlan",
    "LatentPlan",
    "StatePlan",
    "fitting_table",
    "format_table",
    "ring_bytes_per_token",
]
