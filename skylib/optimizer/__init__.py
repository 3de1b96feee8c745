"""Which offers serve a task, and why the others do not."""
