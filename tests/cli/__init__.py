"""What is promised of the commands."""
