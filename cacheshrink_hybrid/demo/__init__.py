"""A small trained hybrid model and the text it was and was not trained on, for demos and tests."""

from pathlib import Path


def model_path() -> Path:
    """Folder of the shipped checkpoint; `AutoModelForCausalLM.from_pretrained` takes it offline.

    A GraniteMoeHybrid of 3.0 M parameters in float16: layers mamba, mamba, attention, twice. Tokens
    are characters, after one `<s>` that the tokenizer adds. Trained by
    `scripts/train_demo_model.py` on `corpus.training_text()` and on exercises as in `recall`, in
    sequences of up to 1280 tokens. Of what it has to remember over 256 tokens it recalls 1.00
    (letters, keys) and 0.95 (text); its perplexity per character on `corpus.held_out_text()` falls
    from 5.0 at positions 4 to 16 to 3.1 beyond 256.
    """
    return Path(__file__).parent / "model"
