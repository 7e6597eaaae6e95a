"""From pictures or vectors to a generator of training data. Knows neither a cache nor a policy."""
