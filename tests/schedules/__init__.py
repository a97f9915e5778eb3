"""What `test_schedules.py` runs: a store in memory, a scheduler that decides who goes next, clients, and the judge."""
