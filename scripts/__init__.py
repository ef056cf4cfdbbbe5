"""Programs of the checkout: demo, tests, benchmarks and the training of the demo model."""
