"""From pictures, or from cached maps, to a trained network. Knows neither timm nor a cache."""
