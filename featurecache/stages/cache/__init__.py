"""The commands that fill, list, check and clean a cache, one function per file."""
