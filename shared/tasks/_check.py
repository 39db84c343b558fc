"""What all tasks ask of their arguments."""

import torch


def check(generator: torch.Generator, **sizes: tuple[int, int]) -> None:
    """Refuse a size that is not a whole number of at least its second entry, and anything but a torch.Generator."""
    for name, (size, least) in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ValueError(f"{name} must be a whole number of at least {least} (got {size!r})")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator (got {generator!r})")
