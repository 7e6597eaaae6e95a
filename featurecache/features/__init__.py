"""From a picture to a vector on disk. Knows nothing about labels or training."""
