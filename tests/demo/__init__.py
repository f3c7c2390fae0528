"""What is promised of the demo: its stand-in, its app, its page."""
