"""A memory backend that searches with hnswlib's graphs: approximate, in memory, on the CPU."""
