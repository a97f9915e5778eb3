"""What the tests named `test_faults_*` share: children that may die, small stores, strace, hostile objects."""
