"""One training loop for both stages, and a task for each."""
