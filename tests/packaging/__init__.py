"""What is shipped, and what importing it brings in."""
