"""Glue: one module per foreign tool (DVC, MLflow, S3), thin enough to delete."""
