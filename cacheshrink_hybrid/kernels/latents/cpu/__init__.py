"""Rows of latents on CPUs, compiled by numba (`kernels.host_code`).

Each file holds functions of one noun. Called from Python are `step.attend_rows`, a layer's whole
step, and for `latent_decode` and `latent_append` alone `reading.read_rows` and
`writing.write_rows`.
"""
