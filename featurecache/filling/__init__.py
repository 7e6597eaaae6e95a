"""How a cache is filled: the plan of shards, claims, dispatch, progress and recomputing."""

from featurecache import generated_pictures  # noqa: F401  installs generators in policies
