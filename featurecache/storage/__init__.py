"""Where bytes lie: local files, object stores, local copies of objects, and locks."""
