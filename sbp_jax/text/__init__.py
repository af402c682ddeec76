"""One measure of likeness and repetition of text, for data, pairs, filters and quality."""
