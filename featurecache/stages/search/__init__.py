"""The command that searches for an augmentation policy, one step per file."""
