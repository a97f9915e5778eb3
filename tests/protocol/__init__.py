"""A model of the words that keep garbage collection safe, and a search through everything that they allow."""
