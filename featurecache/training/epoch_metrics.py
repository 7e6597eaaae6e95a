"""The metrics file of a training: one line per epoch and fold."""

from __future__ import annotations

METRICS_FILE = "metrics.jsonl"  # of a run folder: a line for each epoch and fold

MAX_METRICS = 256 << 20  # bytes; a line has 300
