"""A memory backend that searches with faiss, on the CPU or on a GPU."""
