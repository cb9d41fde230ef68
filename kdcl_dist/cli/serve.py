"""`kdcl serve`: an export that answers with logits over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from kdcl_dist.cli.group import allows_imports, echo, kdcl, reports_errors, takes_device

__all__ = ["serve"]


@kdcl.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0: all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8410, show_default=True, help="0: any.")
@click.option(
    "--max-rows", type=click.IntRange(1), default=4096, show_default=True, help="Samples of a request."
)
@click.option(
    "--max-mb", type=click.IntRange(1, 10_000), default=256, show_default=True, help="MB of a request."
)
@takes_device
@allows_imports
@reports_errors
def serve(
    export: Path,
    host: str,
    port: int,
    max_rows: int,
    max_mb: int,
    device: str,
    allow_imports: tuple[str, ...],
) -> None:
    """Answer batches of samples with the logits of an EXPORT folder, over HTTP, until Ctrl-C.

    Whoever reaches the address may ask.
    """
    import os
    import signal

    from kdcl_dist.export.prediction import Export
    from kdcl_dist.export.server import LogitsServer

    found = Export.read(export, allow_imports, device)
    limits = {"max_rows": max_rows, "max_bytes": max_mb * 10**6}
    with LogitsServer(found, host, port, **limits, tell=lambda line: echo(line, err=True)) as server:
        echo(f"{server.served.name}: {server.served.inputs}, {len(server.served.classes)} classes")
        echo(f"listens at {server.url} (Ctrl-C ends it)")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.stopping.set())
        server.serve()
    echo("ended")
    if server.handlers:  # a network still computes: the interpreter's end would abort its thread
        os._exit(0)
