"""A memory backend on disk: chunks in an LMDB file, searched exactly without loading them."""
