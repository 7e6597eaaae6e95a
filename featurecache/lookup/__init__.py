"""What a cache holds: labelled rows, spaces, and the command that fills a gap."""

from featurecache import generated_pictures  # noqa: F401  installs generators in policies
