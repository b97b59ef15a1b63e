"""Order: Prefect flows and the command line; no logic, no numbers."""
