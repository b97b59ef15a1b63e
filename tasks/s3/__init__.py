"""What is said to buckets."""
