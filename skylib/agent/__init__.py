"""The process on every node: job table, gang queue, ranks, logs. Standard library, Python 3.8 syntax, relative imports."""
