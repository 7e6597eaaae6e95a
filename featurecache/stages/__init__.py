"""One verb, one command, one function, read top to bottom. Only stages join the three wings."""

from featurecache import generated_pictures  # noqa: F401  installs generators in policies
