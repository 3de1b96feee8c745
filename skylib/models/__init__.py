"""Frozen values: tasks, resources, offers, clusters, jobs."""
