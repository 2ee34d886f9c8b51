"""Pure tensor functions: no module, no state."""
