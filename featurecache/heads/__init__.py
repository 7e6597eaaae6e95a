"""From vectors to a trained head. Knows nothing of images or networks."""
