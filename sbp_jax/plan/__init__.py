"""Planning: what a run will need on a TPU slice, asked of the TPU compiler on any machine."""
