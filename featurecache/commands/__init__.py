"""The commands: each parses, calls one stage, which is imported then, and prints."""
