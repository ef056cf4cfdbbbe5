"""Frames and sequences in one pool of bytes: who holds what, and where it lies.

Knows neither transformers nor what is stored: layouts are compiled from plain numbers.
"""
