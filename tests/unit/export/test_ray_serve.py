"""A replica of examples/serve, without Ray's cluster: it answers as `kdcl serve` does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from serving import export_of
from torch import nn

from kdcl_dist.export.prediction import Export
from kdcl_dist.models.remote.served import Served
from kdcl_dist.models.remote.wire import decode, encode

pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)


def test_a_replica_answers_as_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.requests import Request

    from examples.serve.teacher import Teacher, app

    export = export_of(nn.Flatten(), ["cat", "dog"], input_shape=(2, 1, 1))
    monkeypatch.setattr(Export, "read", lambda folder, allow_imports, device: export)
    replica = Teacher.func_or_class("exports/large")

    def ask(method: str, body: bytes = b"") -> Any:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        return asyncio.run(replica(Request({"type": "http", "method": method}, receive)))

    assert Served.model_validate_json(ask("GET").body).classes == ["cat", "dog"]
    answer = ask("POST", encode({"input": torch.eye(2)[:, :, None, None]}))
    assert (answer.status_code, decode(bytearray(answer.body))["logits"].tolist()) == (200, [[1, 0], [0, 1]])
    refused = ask("POST", encode({"input": torch.zeros(2)}))
    assert refused.status_code == 400
    assert b"where a sample has input" in refused.body
    assert app({"export": "exports/large"}) is not None
