"""Files on their way to nodes: ignore rules, manifests, delivery."""
