"""Training of the networks in the registry."""
