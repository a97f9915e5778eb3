"""`python -m bench.storage`: what trained checkpoints take on disk, by cas and by what else people use."""
