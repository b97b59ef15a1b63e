"""What is said to DVC."""
