"""What goes out, who decided about it, and who vouches for it."""
