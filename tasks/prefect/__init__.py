"""What is said to Prefect."""
