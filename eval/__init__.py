"""Evaluation programs of the checkout; the same mains as the console command's."""
