"""What MLflow's and Prefect's servers are told, wherever they run: one place for the laptop, compose and Kubernetes."""

from collections.abc import Mapping

from infra.stores import BUCKET

__all__ = ["REGION", "SILENT", "USER", "client", "mlflow_auth", "mlflow_server", "prefect_server"]

USER = "meca"  # one name for all services; the passwords differ
REGION = "us-east-1"

# No telemetry; MLflow knows only the word `true`.
SILENT: Mapping[str, str] = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def mlflow_server(*, database: str, auth_file: str, artifacts: str, hosts: str, login: tuple[str, str], session: str) -> dict[str, str]:
    """Return the variables of a tracking server behind basic auth, through which all artifacts pass.

    Args:
        database: Its address, password included.
        auth_file: Where the text of `mlflow_auth` lies.
        artifacts: The place in a bucket; its keys come from the AWS variables.
        hosts: Names under which it may be called, with commas between: no page of the web reaches it through a browser.
        login: Name and password of the administrator, who is made at the first start.
        session: The key of its cookies.
    """
    return {
        **SILENT,
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        "MLFLOW_AUTH_CONFIG_PATH": auth_file,
        "MLFLOW_AUTH_ADMIN_USERNAME": login[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": login[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": session,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes and 0.5 GB instead of 10 and 1.9 GB
    }


def mlflow_auth(database: str) -> str:
    """Return the configuration of basic auth: whoever is let in may read, and changes only what is his."""
    settings = {
        "default_permission": "READ",
        "database_uri": database,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    return "[mlflow]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())


def prefect_server(*, database: str, login: str, broker: str | None = None) -> dict[str, str]:
    """Return the variables of a server, or of one of its halves.

    Args:
        database: Its address, password included.
        login: name:password, which every client sends.
        broker: The address of a Redis, where API and background services are processes of their own: what they tell each
            other stays in memory otherwise. The tables are then made beforehand.
    """
    shared = {
        **SILENT,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    # With leases in memory, a server that crashes leaks the slots of its limits for good.
    if broker is None:
        return {**shared, "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
    return {
        **shared,
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
        "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
        "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
        "PREFECT_SERVER_DOCKET_URL": broker,
        "PREFECT_REDIS_MESSAGING_URL": broker,
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": broker,  # takes nothing from the line above
    }


def client(secrets: Mapping[str, str], addresses: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which meca, DVC, MLflow's client and Prefect's client reach the servers.

    Args:
        secrets: By name.
        addresses: Of `mlflow`, `prefect` and `s3`, as far as they are there.
    """
    found: dict[str, str] = {}
    if "mlflow" in addresses:
        found["MLFLOW_TRACKING_URI"] = addresses["mlflow"]
        found["MLFLOW_TRACKING_USERNAME"] = USER
        found["MLFLOW_TRACKING_PASSWORD"] = secrets["mlflow"]
    if "prefect" in addresses:
        found["PREFECT_API_URL"] = addresses["prefect"]
        found["PREFECT_API_AUTH_STRING"] = f"{USER}:{secrets['prefect']}"
    if "s3" in addresses:
        found["AWS_ENDPOINT_URL"] = addresses["s3"]
        found["AWS_ACCESS_KEY_ID"] = f"{USER}:{USER}"
        found["AWS_SECRET_ACCESS_KEY"] = secrets["s3"]
        found["AWS_DEFAULT_REGION"] = REGION
        found["MECA_S3_BUCKET"] = BUCKET
        found["MECA_REMOTE_URL"] = f"s3://{BUCKET}/dvc"
    return found
