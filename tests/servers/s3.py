"""An S3 server as tests see it: where it is, with which key, and buckets."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where a server listens and a key that may do everything; `is_real`: its conditional writes can be raced."""

    endpoint: str
    key: str
    secret: str = field(repr=False)
    is_real: bool = False
    buckets: list[str] = field(default_factory=list, repr=False)

    @property
    def options(self) -> dict[str, str]:
        """Storage options of s3fs."""
        return {"key": self.key, "secret": self.secret, "endpoint_url": self.endpoint}

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"cas-test-{uuid.uuid4().hex[:16]}"
        region = _region()
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        self.client().create_bucket(Bucket=name, **place)
        self.buckets.append(name)
        return name

    def url(self, bucket: str, path: str = "") -> str:
        return f"s3://{bucket}/{path}".rstrip("/")

    def client(self, seconds: float = 60) -> Any:
        """A client of botocore: the tests' own eyes on a bucket. It waits so long for an answer and never retries."""
        return _client(self.endpoint, self.key, self.secret, seconds)

    def discard_all(self) -> None:
        """Delete the buckets that were made, with all that is in them."""
        while self.buckets:
            _discard(self.client(), self.buckets.pop())


def _discard(client: Any, bucket: str) -> None:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=entry["Key"])
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
        for upload in page.get("Uploads", ()):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    client.delete_bucket(Bucket=bucket)


def _region() -> str:
    return os.environ.get("AWS_DEFAULT_REGION", "us-east-1")


@cache
def _client(endpoint: str, key: str, secret: str, seconds: float) -> Any:
    from botocore.config import Config
    from botocore.session import Session

    settings = Config(
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": 1},
        read_timeout=seconds,
        max_pool_connections=32,
    )
    return Session().create_client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name=_region(),
        config=settings,
    )
