""""""

from featurecache import generated_pictures  # noqa: F401  installs generators in policies
