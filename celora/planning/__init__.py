"""What a job will need, before a GPU is used: parameters, memory, steps, hours."""
