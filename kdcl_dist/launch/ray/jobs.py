"""Jobs of a Ray cluster, over HTTP from a machine that need not belong to it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from kdcl_dist.errors import KdclError, UserError, one_line

__all__ = ["RUNTIME_ENV", "Jobs"]

#: The same as cluster/runtime_env.yaml, which gives the reasons.
RUNTIME_ENV: Mapping[str, Any] = {
    "excludes": [
        ".git/",
        ".venv/",
        "venv/",
        "/runs/",
        "/data/",
        "/docs/",
        "/tests/",
        "__pycache__/",
        "*.pt",
        "*.safetensors",
        "*.parquet",
        ".env*",
    ],
    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "25"},
}

#: Ray prefers these variables to an address that is passed.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
#: Exit codes of `kdcl train` that tell more than a failure of the run: a mistake of the user, an interrupt.
EXIT_CODES = (2, 130)
POLL_S = 0.5
#: Seconds for a first connection.
REACH_S = 10.0
#: Seconds between the end of a job's log and the end of the job.
END_S = 60.0


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of the head's dashboard, such as http://10.0.0.10:8265.

    Raises:
        UserError: the address does not answer, is no Ray cluster, or refuses the token.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        logging.getLogger("ray").setLevel(logging.ERROR)
        with _without(ADDRESS_VARIABLES), self._explained_errors():
            _reach(address)
            self._client = JobSubmissionClient(address)

    def submit(self, command: str, working_dir: str, runtime_env: Mapping[str, Any]) -> str:
        """Upload a folder, and start a command in it.

        Args:
            command: a command line for a shell.
            working_dir: the folder.
            runtime_env: Ray's runtime environment of the job.

        Returns:
            The job's id.
        """
        with self._explained_errors():
            return str(
                self._client.submit_job(
                    entrypoint=command, runtime_env={**runtime_env, "working_dir": working_dir}
                )
            )

    def follow(self, job: str, write: Callable[[str], None]) -> int:
        """Pass a job's output to `write` until the job ends.

        Returns:
            The exit code of `kdcl submit`: as that of `kdcl train`.

        Raises:
            KdclError: the connection was lost; the job goes on.
        """
        try:
            asyncio.run(self._tail(job, write))
            return self._exit_code(job)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise KdclError(
                f"the connection to {self.address} was lost ({one_line(error)}); the job goes on: "
                f"{self.advice(job)}"
            ) from error

    def advice(self, job: str) -> str:
        """The commands that follow and stop a job from here."""
        there = f"{job} --address {self.address}"
        return f"`ray job logs --follow {there}` follows it, `ray job stop {there}` ends it with a checkpoint"

    async def _tail(self, job: str, write: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(job):
            write(text)

    def _exit_code(self, job: str) -> int:
        deadline = time.monotonic() + END_S
        while not (info := self._client.get_job_info(job)).status.is_terminal():
            if time.monotonic() > deadline:
                raise RuntimeError("its log ended, but not the job")
            time.sleep(POLL_S)
        if info.status == JobStatus.SUCCEEDED:
            return 0
        if info.status == JobStatus.STOPPED:
            return 130
        return info.driver_exit_code if info.driver_exit_code in EXIT_CODES else 1

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            raise UserError(
                f"--address {self.address}: the cluster refuses the token; set RAY_AUTH_MODE=token and have "
                "the cluster's token in ~/.ray/auth_token or in the file of RAY_AUTH_TOKEN_PATH"
            ) from None
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"--address {self.address}: {one_line(error)}") from error


def _reach(address: str) -> None:
    """Connect once, since Ray's client waits for minutes where a firewall drops its packets."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an URL such as http://10.0.0.10:8265 is needed")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname, port), timeout=REACH_S).close()


@contextmanager
def _without(variables: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
