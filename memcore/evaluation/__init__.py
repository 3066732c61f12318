"""Evaluations: what a memory is worth on long texts, beside what one would use without it."""
