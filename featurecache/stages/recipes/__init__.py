"""The commands that run a sequence of other commands."""
