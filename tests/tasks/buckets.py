"""Clients of a server that speaks S3."""

from typing import Any

import boto3
from botocore.config import Config


def connect(port: int) -> Any:
    config = Config(retries={"mode": "standard", "max_attempts": 2}, connect_timeout=2, read_timeout=3, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", config=config)
