"""Rows of latents on CPUs, compiled by numba (`kernels.host_code`).

Each file holds functions of one noun; `reading.read_rows` and `writing.write_rows` are called from
Python, by `latent_decode` and `latent_append`.
"""
