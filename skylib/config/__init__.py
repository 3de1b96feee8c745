"""Configuration: schema, layers, loading."""
