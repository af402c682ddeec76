"""The decoder and its attention."""
