"""Serve a page to draw in: choose a class, press a button, watch the image appear token by token.

It is 'aimamba serve' with a page at /studio/, so programs can ask the same server. It listens on this machine alone
unless --host says otherwise; with a key in $AIMAMBA_API_KEY or a file (--api-key-file) the page asks for it once. See
docs/studio.md.
"""

import argparse

from aimamba.cli.arguments import Parser
from aimamba.cli.serve import add_server, serve_model


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_server(parser)
    parser.add_argument("--open", action="store_true", help="open the page in the browser of this machine")


def run(arguments: argparse.Namespace) -> None:
    """Load the model and serve it with the page until a signal comes."""
    serve_model(arguments, with_studio=True, open_browser=arguments.open)
