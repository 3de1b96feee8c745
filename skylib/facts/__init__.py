"""Questions to a node: pairs of a command and a pure parser."""
