"""Training: one loop, the pairs it sees, and what keeps a run alive."""
