"""Other people's weights: pure maps from a flat dict of arrays to our parameters."""
