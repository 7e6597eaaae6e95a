"""Metrics, figures, projections and saliency: pure functions of arrays."""
