"""Record shapes: what a record's columns mean, whatever file it came from."""
