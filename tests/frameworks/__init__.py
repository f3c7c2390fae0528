"""Every framework's page, its app on real servers, and what is promised there."""
