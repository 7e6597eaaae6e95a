"""The commands that train heads and use them, one function per file."""
