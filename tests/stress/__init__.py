"""What `test_stress.py` runs: processes with one task each on one store, and a supervisor that kills and stops them."""
