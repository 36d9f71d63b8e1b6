"""One worker per device: finds devices, claims jobs, supervises the trainer process."""
