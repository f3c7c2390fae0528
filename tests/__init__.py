"""What convmem promises, checked. ``python3 -m tests`` runs all of it."""
