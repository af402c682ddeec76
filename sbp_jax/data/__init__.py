"""SeqIO sources and vocabularies, packing, caching, and the row loader."""
