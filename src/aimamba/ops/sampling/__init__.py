"""From logits to sampled tokens: guidance, filters and the choice at random."""
