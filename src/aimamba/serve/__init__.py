"""An HTTP server for images: FastAPI in front of the scheduler of ``aimamba.generation.scheduler``."""
