"""Fine-tuning of converted models: bases on the Stiefel manifold, everything else by AdamW.

texts -> sequences (`data`) -> metric -> `TrainableBases` (`attachment`) -> `Objective` over the
loop of transformers (`loop`) -> an ordinary converted model again.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .nested import cut_ranks
    from .settings import TrainingConfig
    from .trainer import MLATrainer

__all__ = ["MLATrainer", "TrainingConfig", "cut_ranks"]
__getattr__, __dir__ = lazy_names(
    __name__, {"MLATrainer": "trainer", "TrainingConfig": "settings", "cut_ranks": "nested"}
)
