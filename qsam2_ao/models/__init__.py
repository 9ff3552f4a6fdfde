"""SAM2 models: the official ones, the small embedded one, and rebuilding a model from its config."""
