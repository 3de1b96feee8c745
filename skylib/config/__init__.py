"""Configuration: schema in code, layers that merge, values that know where they came from."""
