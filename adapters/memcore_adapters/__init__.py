"""Adapters of memcore: what is specific to model families, and the installation into transformers."""
