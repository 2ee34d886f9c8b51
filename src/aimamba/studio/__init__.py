"""The page: a studio in the browser, on the server of ``aimamba.serve``."""
