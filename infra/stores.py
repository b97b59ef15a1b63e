"""What MLflow and Prefect stand on: a role and databases on PostgreSQL, buckets on an S3 server. Made again, nothing changes."""

import contextlib
from collections.abc import Mapping

from meca.errors import MecaError

__all__ = ["BUCKET", "DATABASES", "MODELS_BUCKET", "address", "make_buckets", "make_databases"]

BUCKET = "meca"  # data and DVC's remote
MODELS_BUCKET = "mlflow"  # behind MLflow's proxy; clients hold no key for it
DATABASES = {"mlflow": "mlflow", "mlflow_auth": "mlflow", "prefect": "prefect"}  # and the role that owns each


def address(driver: str, name: str, password: str, server: str) -> str:
    """Return the address of a database, password included: for environments and private files only."""
    return f"postgresql+{driver}://{DATABASES[name]}:{password}@{server}/{name}"


def make_databases(host: str, port: int, password: str, passwords: Mapping[str, str]) -> None:
    """Create the roles and databases that are missing and set the passwords.

    Args:
        host: Of PostgreSQL.
        port: Of PostgreSQL.
        password: Of the role `postgres`.
        passwords: Of each role that owns databases.

    Raises:
        MecaError: PostgreSQL refuses.
    """
    import psycopg2
    from psycopg2 import sql

    try:
        connection = psycopg2.connect(host=host, port=port, user="postgres", password=password, dbname="postgres", connect_timeout=10)
    except psycopg2.Error as error:
        raise MecaError(f"PostgreSQL at {host}:{port} lets its superuser not in: {_first_line(error)}") from None
    connection.autocommit = True  # CREATE DATABASE stands in no transaction
    try:
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute("SET log_min_error_statement TO panic")  # a statement that fails holds a password
            cursor.execute("SELECT pg_advisory_lock(720)")  # two that do this at once: one after the other
            for role in sorted(set(DATABASES.values())):
                cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,))
                verb = "ALTER" if cursor.fetchone() is not None else "CREATE"
                cursor.execute(sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(passwords[role])))
            for name, role in DATABASES.items():
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(role)))
                cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
    except psycopg2.Error as error:
        raise MecaError(f"PostgreSQL refused to make its databases: {_first_line(error)}") from None


def make_buckets(endpoint: str, region: str, key: str, secret: str) -> None:
    """Create the buckets; what lies in the one of the data keeps its versions.

    Raises:
        MecaError: The server refuses.
    """
    import boto3.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    patience = Config(retries={"max_attempts": 5}, proxies={}, connect_timeout=5, read_timeout=60)
    session = boto3.session.Session(key, secret, region_name=region)
    with contextlib.closing(session.client("s3", endpoint_url=endpoint, config=patience)) as client:
        try:
            there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for name in {BUCKET, MODELS_BUCKET} - there:
                client.create_bucket(Bucket=name)
            client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        except (BotoCoreError, ClientError) as error:
            raise MecaError(f"The S3 server at {endpoint} refused to make its buckets: {error}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
