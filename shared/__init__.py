"""The helper package of Unrolled: what its chapters import.

Nothing is imported here, so that `import shared` costs nothing; import the room you need, as in `from shared import ledger`.
"""
