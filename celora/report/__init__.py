"""One file that tells all of a run, or sets runs side by side: HTML for people, PNG for slides."""
