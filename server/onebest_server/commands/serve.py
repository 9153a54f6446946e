"""``onebest serve``: recognise speech for programs and browsers that connect."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from onebest.cli import Command
from onebest.commands.transcribe import add_model_arguments
from onebest.errors import ConfigError
from onebest_server.access import is_loopback, read_origin, read_tokens
from onebest_server.limits import add_limit_arguments, read_limits
from onebest_server.server import Settings
from onebest_server.workers import run_server

#: Addresses that mean all of this machine's, and the one of them that its browsers trust without TLS.
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=6006, help="port (default: 6006)")
    add_model_arguments(parser)
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--threads", type=int, help="threads that decode, a process (default: cores / workers)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help=f"processes (default: 1; this machine: {cores} cores)"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="tokens that clients need, one a line (default: the environment's ONEBEST_TOKEN, if set)",
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="a web page's origin that may connect besides the server's own; may be repeated",
    )
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM: serve with TLS"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM (default: in --tls-cert)")
    parser.add_argument(
        "--wyoming-port",
        type=int,
        metavar="PORT",
        help="port for clients of Wyoming, such as Home Assistant, usually 10300 (default: none)",
    )
    parser.add_argument("--log-text", action="store_true", help="write what was said to the log")
    add_limit_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; return 0 if all clients got their texts.

    Raises:
        ConfigError: the settings are impossible, or a port is taken or not allowed.
    """
    settings = read_settings(arguments)
    if not is_loopback(settings.host) and not settings.tokens:
        print(
            f"onebest serve: warning: {settings.host} can be reached from other machines, "
            "and no token is set; see --token-file",
            file=sys.stderr,
        )

    def announce(port: int, wyoming_port: int | None) -> None:
        print(f"Open {page_address(settings, port)} in a browser.", flush=True)
        if wyoming_port is not None:
            print(f"Clients of Wyoming connect to port {wyoming_port}.", flush=True)

    return run_server(settings, announce)


def page_address(settings: Settings, port: int) -> str:
    """Return where a browser on this machine finds the page, with the microphone, which it gives to few."""
    host = ANY_ADDRESS.get(settings.host, settings.host)
    scheme = "https" if settings.certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings that the arguments name.

    Raises:
        ConfigError: the tokens cannot be read, an origin is none, or a setting is impossible.
    """
    if arguments.workers < 1 or (arguments.threads is not None and arguments.threads < 1):
        raise ConfigError("Expected one worker and one thread, or more.")
    return Settings(
        host=arguments.host,
        port=arguments.port,
        model=arguments.model,
        chunk_ms=arguments.chunk_ms,
        beam=arguments.beam,
        threads=arguments.threads or max(1, (os.cpu_count() or 1) // arguments.workers),
        workers=arguments.workers,
        limits=read_limits(arguments),
        tokens=read_tokens(arguments.token_file),
        origins=tuple(map(read_origin, arguments.origin)),
        certificate=arguments.tls_cert,
        key=arguments.tls_key,
        log_text=arguments.log_text,
        wyoming_port=arguments.wyoming_port,
    )


command = Command("serve speech recognition over websockets", add_arguments, run)
