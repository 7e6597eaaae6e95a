"""The commands: each parses its arguments, imports and calls one stage, and prints the result."""
