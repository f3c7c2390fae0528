"""A small chat app over convmem: what ``convmem demo`` runs, and an example to read."""
