"""What follows from a run: stability, delay margins, timeliness, comparisons of mixings, design and sweeps."""
