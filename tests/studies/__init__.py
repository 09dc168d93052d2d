"""Studies: their statistics by hand, their machinery on tiny models."""
