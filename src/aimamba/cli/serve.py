"""Serve images over HTTP: generate, watch them grow, and an API that OpenAI's clients know.

Requests share decoding steps and join between two tokens. Listens on this machine alone unless --host says otherwise;
then set a key in $AIMAMBA_API_KEY or a file (--api-key-file). Ctrl-C or SIGTERM finishes what is being generated. See
docs/serving.md; /docs on the server describes every request. --studio adds a page for people, as 'aimamba studio' does.
"""

import argparse
import os
import sys
import webbrowser
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimamba.cli.arguments import (
    MODEL_BY_DEFAULT,
    Parser,
    add_engine,
    add_foreign_tokenizer,
    add_placement,
    load_pipeline,
)
from aimamba.cli.many import add_ray_address
from aimamba.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from aimamba.serve.config import ServeConfig
    from aimamba.serve.service import Service

_KEY = "AIMAMBA_API_KEY"
_LARGEST_KEY_FILE = 1 << 16  # bytes


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_server(parser)
    parser.add_argument("--studio", action="store_true", help="serve the page of 'aimamba studio' as well")


def add_server(parser: Parser) -> None:
    """Declare the options of every server."""
    parser.add_argument(
        "model", nargs="?", default=MODEL_BY_DEFAULT, metavar="MODEL", help="as for 'aimamba sample' (avatars-64)"
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, if MODEL does not include one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000; 0 takes a free one)")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="images generated together (default 32)")
    parser.add_argument("--queue", type=int, default=256, metavar="N", help="images that may wait (default 256)")
    parser.add_argument(
        "--images-per-request", type=int, default=64, metavar="N", help="images that a request may ask for (default 64)"
    )
    parser.add_argument(
        "--upload-bytes", type=int, default=16 << 20, metavar="N", help="bytes of an uploaded image (default 16 MiB)"
    )
    parser.add_argument(
        "--upload-pixels", type=int, default=1 << 25, metavar="N", help="pixels of an uploaded image (default 2^25)"
    )
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="time for a request, waiting included (300)"
    )
    parser.add_argument(
        "--idle-timeout", type=float, default=30.0, metavar="SECONDS", help="time for a client that hangs (30)"
    )
    parser.add_argument(
        "--grace", type=float, default=30.0, metavar="SECONDS", help="time to finish what is there at the end (30)"
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=f"keys, one a line, in place of ${_KEY}")
    parser.add_argument(
        "--allowed-hosts",
        action="append",
        default=[],
        metavar="HOST",
        help="name by which clients may call the server, or '*' for any (default: names of this machine if it listens "
        "on 127.0.0.1, or else any)",
    )
    parser.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="web page that may use the server, or '*'"
    )
    add_foreign_tokenizer(parser)
    add_placement(parser)
    add_engine(parser)
    add_ray_address(parser)
    parser.add_argument(
        "--replicas", type=int, metavar="N", help="with --ray: processes, each with the model (one for each CPU or GPU)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Load the model and serve it until a signal comes."""
    serve_model(arguments, with_studio=arguments.studio)


def serve_model(arguments: argparse.Namespace, *, with_studio: bool, open_browser: bool = False) -> None:
    """Load the model and serve it until a signal comes.

    Args:
        arguments: The options of ``add_server``.
        with_studio: Serve the page for people as well.
        open_browser: Show it in the browser of this machine.
    """
    from aimamba.cli.output import print_line

    _require_extra(arguments, "studio" if with_studio else "serve")
    from aimamba.serve.server import address_of, listen, serve
    from aimamba.serve.service import Service

    config = _config(arguments)
    if arguments.ray is not None:
        return _run_replicas(arguments, config)
    listener = listen(arguments.host, arguments.port)
    try:
        service = Service(load_pipeline(arguments), arguments.model, config, arguments.tokenizer)
        app, stop = _apps(service, with_studio)
        url = address_of(listener)
        _begin(arguments, config, url)
        if with_studio:
            print_line(f"the studio at {url}/studio/")
        if open_browser:
            webbrowser.open(f"{url}/studio/")  # the socket listens already: the browser waits for the answer
        serve(app, listener, config, stop)
    finally:
        listener.close()


def _run_replicas(arguments: argparse.Namespace, config: "ServeConfig") -> None:
    """Serve with several processes of Ray."""
    from aimamba.cli.output import print_notice
    from aimamba.cluster.session import LOCAL, session
    from aimamba.cluster.workers import choose_workers
    from aimamba.config import check
    from aimamba.serve.server import address_of, listen

    count, device = arguments.replicas, arguments.device
    check(count is None or count >= 1, f"--replicas must be at least 1, got {count}")
    check(device in ("auto", "cpu", "cuda"), f"--device {device} is one device; with --ray give auto, cpu or cuda")
    if arguments.ray == LOCAL:
        with listen(arguments.host, arguments.port) as listener:
            arguments.port, url = listener.getsockname()[1], address_of(listener)
    else:
        check(arguments.port != 0, "--port 0: with the address of a Ray cluster, give the number of a port")
        url = f"http://{arguments.host}:{arguments.port}"
    with session(arguments.ray, _show) as resources:
        from aimamba.serve.replicas import serve_replicas

        chosen = choose_workers(resources, device, count, "--replicas")
        arguments.device = chosen.device
        serve_replicas(
            partial(load_pipeline, arguments),
            arguments.model,
            config,
            tokenizer=arguments.tokenizer,
            address=arguments.ray,
            host=arguments.host,
            port=arguments.port,
            cluster=chosen,
            begun=lambda: _begin(arguments, config, url),
            lost=lambda: print_notice("aimamba: a replica was lost; Ray starts another one"),
        )


def _show(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
    """Print what a replica prints on stderr: what went wrong. Ray calls it with what any of its processes prints."""
    if data.get("is_err") and "ServeReplica" in str(data.get("actor_name")):
        print(*data["lines"], sep="\n", file=sys.stderr)


def _begin(arguments: argparse.Namespace, config: "ServeConfig", url: str) -> None:
    """Say where the server is."""
    from aimamba.cli.output import print_line, print_notice

    if not config.api_keys and not _is_loopback(arguments.host):
        print_notice(f"aimamba: everybody who reaches {arguments.host} may use the server; a key in ${_KEY} stops that")
    print_line(f"{arguments.model} at {url}, described at {url}/docs")


def _apps(service: "Service", with_studio: bool) -> "tuple[FastAPI, Callable[[], object]]":
    """Return the app, and what to call when it is asked to stop."""
    if with_studio:
        from aimamba.studio.app import make_studio

        return make_studio(service)
    from aimamba.serve.app import make_app

    return make_app(service), service.drain


def _config(arguments: argparse.Namespace) -> "ServeConfig":
    from aimamba.generation.scheduler import SchedulerConfig
    from aimamba.serve.config import ServeConfig

    if not 0 <= arguments.port < 1 << 16:
        raise ConfigError(f"--port must be 0 to 65535, got {arguments.port}")
    scheduler = SchedulerConfig(
        images=arguments.images, reserved=max(0, arguments.images // 4), waiting=arguments.queue
    )
    return ServeConfig(
        scheduler=scheduler,
        images_per_request=arguments.images_per_request,
        upload_bytes=arguments.upload_bytes,
        upload_pixels=arguments.upload_pixels,
        request_seconds=arguments.timeout,
        idle_seconds=arguments.idle_timeout,
        grace_seconds=arguments.grace,
        api_keys=_keys(arguments.api_key_file),
        hosts=_hosts(arguments.host, arguments.allowed_hosts),
        origins=tuple(arguments.cors),
    )


def _hosts(host: str, allowed: list[str]) -> tuple[str, ...]:
    """Return the names by which clients may call the server; none for any."""
    if "*" in allowed or not (allowed or _is_loopback(host)):
        return ()
    local = ("localhost", "127.0.0.1", "::1") if _is_loopback(host) else ()
    return tuple(name.strip("[]").lower() for name in (*local, host, *allowed))


def _keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys in a file, or else that of the environment."""
    from aimamba.files import expand_home

    if file is None:
        return (os.environ[_KEY],) if os.environ.get(_KEY) else ()
    with expand_home(file).open("rb") as opened:
        content = opened.read(_LARGEST_KEY_FILE)
    keys = tuple(line.strip() for line in content.decode("ascii", errors="replace").splitlines() if line.strip())
    if not keys:
        raise ConfigError(f"--api-key-file {file}: there is no key in it; write one a line")
    return keys


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_extra(arguments: argparse.Namespace, extra: str) -> None:
    from importlib.util import find_spec

    if arguments.ray is None and arguments.replicas is not None:
        raise ConfigError("--replicas needs --ray")
    if arguments.ray is not None and extra == "studio":
        raise ConfigError("the studio has no effect with --ray: a visitor's requests must all reach one process")

    needed = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
    needed["python_multipart"] = "python-multipart"
    if extra == "studio":
        needed["gradio"] = "gradio"
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{extra} needs {', '.join(missing)}; install it: pip install 'aimamba[{extra}]'")
    if arguments.ray is not None and any(find_spec(name) is None for name in ("ray", "grpc_reflection", "aiohttp")):
        raise ConfigError("--ray needs Ray Serve, which is not installed; type: pip install 'aimamba[ray,serve]'")
