"""A power cut, simulated: what really was done to the disk, and what of it may be there afterwards."""
