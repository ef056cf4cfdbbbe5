"""A small trained hybrid model and the text it was and was not trained on, for demos and tests."""

from pathlib import Path


def model_path() -> Path:
    """Folder of the shipped checkpoint; `AutoModelForCausalLM.from_pretrained` takes it offline.

    A GraniteMoeHybrid of 3.0 M parameters in float16 with a character tokenizer, trained by
    `scripts/train_demo_model.py` on `corpus.training_text()` and on exercises as in `recall`.
    """
    return Path(__file__).parent / "model"
