"""Ways to run a decoding step."""
