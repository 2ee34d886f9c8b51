"""Evaluation: closeness of images to a reference, copies of training images, quality of a tokenizer."""
