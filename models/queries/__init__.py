"""Every SQL statement of the product, one subject a file.

Each function takes a `Session` first and never commits: the caller opens one short transaction
(`with transaction() as session:`), with nothing slow inside it.

Rows are locked in one order everywhere: **gpus → jobs → attempts → tenants**; a function that may
need an earlier row takes it before a later one, and several rows of one table in the order of their
keys, or with SKIP LOCKED. Job rows are locked FOR NO KEY UPDATE, so that appending a child row
(a metric, an event) never waits for them. Two advisory locks come before all rows. A user's row is
locked after the attempt's, for the bytes on disk; prepared data after everything else, but that the
sweep goes on from there to jobs that are over.

An attempt is live while `ended_at` is null. A job has at most one, with the job's own fence; it is
ended by whoever holds the job's row. Leases are set and compared by the database's clock.
"""
