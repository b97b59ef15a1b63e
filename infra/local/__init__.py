"""The servers of a team as plain processes of one machine: PostgreSQL, an S3 server, MLflow, Prefect. All on 127.0.0.1."""
