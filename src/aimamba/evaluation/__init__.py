"""Measuring: how near a set of pictures is to a reference, how much it copies, what a tokenizer keeps."""
