"""Parts of `scripts.train_demo_model`: architectures, tokenizer, training sequences."""
