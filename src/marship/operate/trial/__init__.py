"""A new version tried with real requests: a shadow, or a canary that may become the default."""
