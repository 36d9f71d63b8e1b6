"""Readers of the file formats: each yields (line, record), a record at a time, and notes problems.

A line counts from 1 in the file as the user sees it; in Parquet, Arrow and hub data it is the row.
A record is yielded whatever its type: the caller says what is wrong with one that is no object.
"""
