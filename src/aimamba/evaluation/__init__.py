"""Measuring: how near a set of images is to a reference, how much it copies, what a tokenizer keeps."""
