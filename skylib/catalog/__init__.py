"""Names and figures of accelerators."""
