"""What a turn costs: against the driver alone, and against what others keep a history with. ``python3 -m benchmarks``."""
