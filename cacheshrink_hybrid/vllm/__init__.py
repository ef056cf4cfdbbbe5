"""Converted models in vLLM: rows of latents in its paged cache, read on its block tables.

vLLM finds `plugin.register` by its entry points for general plugins. Nothing else imports
this folder, and of its files `blocks`, `memory_check`, `own_heads`, `paged_attention` and `support`
import no vLLM.
"""
