"""From a file in any usual shape to tokens: read, check, drop duplicates, split, tokenise, pack.

Rows stream through, so memory does not grow with the file. `prepare` makes the trainer's input,
`validate` tells what `prepare` would say; both walk the same path.
"""
