"""`python -m featurecache` is the command `featurecache`."""

from featurecache.cli import main

main()
