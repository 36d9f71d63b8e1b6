"""Vocabulary and records: the job specification, its states, the tables and every SQL query."""
