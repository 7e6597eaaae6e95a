"""From encoded bytes to the picture of a view. Knows nothing about networks or vector files."""
