"""Ordinary S3 clients that copy a folder to a bucket and back: what a push and a load are compared with."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

_THREADS = 8


@dataclass(frozen=True, slots=True)
class Server:
    """An S3 service, and a bucket of it that is ours."""

    endpoint: str
    key: str
    secret: str
    bucket: str

    @property
    def options(self) -> dict[str, str]:
        return {"key": self.key, "secret": self.secret, "endpoint_url": self.endpoint}

    def client(self) -> Any:
        """A botocore client."""
        import botocore.session

        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )

    def empty(self) -> None:
        """Delete all that the bucket holds."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for found in page.get("Contents", ()):
                client.delete_object(Bucket=self.bucket, Key=found["Key"])

    def stored(self, prefix: str) -> int:
        """Bytes of all objects below a prefix."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sum(found["Size"] for page in pages for found in page.get("Contents", ()))


Copy = Callable[[Server, Path, str], None]
"""Between a folder and a prefix of the bucket."""


@dataclass(frozen=True, slots=True)
class Client:
    """A program that copies there (`put`) and back (`get`)."""

    put: Copy
    get: Copy


def clients() -> dict[str, Client]:
    """Those that are installed."""
    found: dict[str, Client] = {}
    if _program("rclone"):
        found["rclone"] = Client(
            lambda server, folder, prefix: _rclone(server, str(folder), f"s3:{server.bucket}/{prefix}"),
            lambda server, folder, prefix: _rclone(server, f"s3:{server.bucket}/{prefix}", str(folder)),
        )
    if _program("aws"):
        found["aws s3 cp"] = Client(
            lambda server, folder, prefix: _aws(server, str(folder), f"s3://{server.bucket}/{prefix}"),
            lambda server, folder, prefix: _aws(server, f"s3://{server.bucket}/{prefix}", str(folder)),
        )
    if importlib.util.find_spec("boto3"):
        found[f"boto3, {_THREADS} threads"] = Client(_boto3_put, _boto3_get)
    return found


def _program(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _rclone(server: Server, source: str, target: str) -> None:
    """With as many transfers and streams as the fastest of a few settings had."""
    settings = {
        "RCLONE_CONFIG_S3_TYPE": "s3",
        "RCLONE_CONFIG_S3_PROVIDER": "Ceph",
        "RCLONE_CONFIG_S3_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_S3_ACCESS_KEY_ID": server.key,
        "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY": server.secret,
    }
    options = ["--transfers=4", "--s3-upload-concurrency=4", "--s3-chunk-size=8M", "--multi-thread-streams=4"]
    line = [_program("rclone") or "rclone", "copy", source, target, *options, "--s3-no-check-bucket", "--quiet"]
    subprocess.run(line, check=True, env={**os.environ, **settings})


def _aws(server: Server, source: str, target: str) -> None:
    access = {"AWS_ACCESS_KEY_ID": server.key, "AWS_SECRET_ACCESS_KEY": server.secret, "AWS_REGION": "us-east-1"}
    line = ["aws", "s3", "cp", "--recursive", "--quiet", "--endpoint-url", server.endpoint, source, target]
    subprocess.run(line, check=True, env={**os.environ, **access})


def _boto3_put(server: Server, folder: Path, prefix: str) -> None:
    client = _boto3(server)
    files = [path for path in folder.rglob("*") if path.is_file()]
    _many(
        [
            lambda path=path: client.upload_file(  # type: ignore[misc]
                str(path), server.bucket, f"{prefix}/{path.relative_to(folder)}"
            )
            for path in files
        ]
    )


def _boto3_get(server: Server, folder: Path, prefix: str) -> None:
    client = _boto3(server)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=server.bucket, Prefix=f"{prefix}/")
    keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
    folder.mkdir(parents=True, exist_ok=True)
    _many(
        [
            lambda key=key: client.download_file(  # type: ignore[misc]
                server.bucket, key, str(folder / key.replace("/", "-"))
            )
            for key in keys
        ]
    )


def _boto3(server: Server) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
    )


def _many(tasks: list[Callable[[], None]]) -> None:
    """All of them, on a few threads; the first failure is raised."""
    queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
    for task in tasks:
        queue.put(task)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not failed:
                queue.get_nowait()()
        except Empty:
            return
        except BaseException as error:
            failed.append(error)

    crew = [threading.Thread(target=work) for _ in range(_THREADS)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if failed:
        raise failed[0]
