"""One run: its description, its prediction, its training, and both side by side."""
