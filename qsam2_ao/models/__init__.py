"""SAM2 models: the official configurations, the small embedded model, and rebuilding a model from its config."""
