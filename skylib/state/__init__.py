"""What skylib knows about clusters, hosts and jobs, kept in a store."""
