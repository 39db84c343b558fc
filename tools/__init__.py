"""The production line of the book: run, stamp, check, generated pages, the repository's address."""
