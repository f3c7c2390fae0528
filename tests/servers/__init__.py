"""Real server processes, and what is promised on them."""
