"""Training on simulated samples, whose labels are known exactly."""
