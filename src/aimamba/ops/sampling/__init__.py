"""From logits to sampled tokens."""
