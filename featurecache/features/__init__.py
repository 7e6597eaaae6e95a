"""From a picture to a vector on disk. Knows nothing of labels or training."""
