"""Jobs on a cluster: submit, watch, logs."""
