"""What a program costs, counted without running it."""
