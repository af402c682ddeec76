"""The pmapped sampler, its schedule, the filters and the corpus it writes."""
