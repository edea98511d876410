"""Ways to a driver's disk from outside its process."""
