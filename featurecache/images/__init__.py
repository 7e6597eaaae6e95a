"""From encoded bytes to the picture of a view. Knows nothing of networks or files of vectors."""
