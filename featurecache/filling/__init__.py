"""How a cache is filled: the plan of shards, claims, dispatch, progress and recomputing."""
