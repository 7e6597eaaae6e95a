"""The layouts of datasets: one file per layout, each of which lists images as contents.py says."""
