"""Training as in MemLong: long documents as consecutive segments, memory carried along and never trained through."""
