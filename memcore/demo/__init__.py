"""The demonstration: facts hidden in a long text, asked of a small model with and without memory."""
