"""The commands that show what is there, one function per file."""
