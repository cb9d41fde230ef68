"""A teacher on Ray Serve: replicas of an export that answer as `kdcl serve` does.

    serve run examples.serve.teacher:app export=exports/large

Needs the package `ray[serve]` of the cluster's version of Ray.
"""

from __future__ import annotations

from pathlib import Path

from ray import serve
from ray.serve import Application
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from kdcl_dist.export.answering import Answering
from kdcl_dist.export.prediction import Export


@serve.deployment
class Teacher:
    """One replica: the network of an export folder, which its host must see."""

    def __init__(self, export: str) -> None:
        self.answering = Answering(Export.read(Path(export), (), "auto"))

    async def __call__(self, request: Request) -> Response:
        """GET: the description of the network. POST: the logits of a batch."""
        if request.method == "GET":
            return Response(self.answering.description(), media_type="application/json")
        try:
            return Response(await run_in_threadpool(self.answering.answer, await request.body()))
        except ValueError as error:
            return Response(str(error), 400)


def app(arguments: dict[str, str]) -> Application:
    """The application of `serve run`; `export` is the folder."""
    return Teacher.bind(arguments["export"])
