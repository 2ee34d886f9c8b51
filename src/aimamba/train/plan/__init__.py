"""What a training would need on some GPUs, computed before there is one: memory, the largest batch, hours."""
