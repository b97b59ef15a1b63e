"""What is said to MLflow."""
