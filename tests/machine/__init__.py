"""What `test_machine.py` runs against a store: a model in plain Python, a look at the disk, and children that die."""
