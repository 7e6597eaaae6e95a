"""The commands that study vectors, views and networks, one function per file."""
