"""Batches of sequences of different lengths: which go together, how they are padded, and how much of that is padding."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler


class BucketSampler(Sampler[list[int]]):
    """Batches of examples of similar length, for `DataLoader(..., batch_sampler=)`, each example once an epoch.

    As in R2RT, "Recurrent Neural Networks in Tensorflow III" (2016), the examples are sorted by length once and cut into
    `buckets` groups of nearly equal size (there five); an epoch shuffles each group and cuts it into batches. (There a
    batch came from a group drawn at random, and an epoch ended, its rest unused, as soon as one group had too few left;
    here all batches of all groups are shuffled and none is left out.) One group is plain shuffling.

    Examples of equal length that a cut parts are put in an order drawn once, here, so that their order in the data
    decides nothing. Each iteration is an epoch, drawn from `generator` when its first batch is asked for.

    lengths: of the examples, in letters, each at least 1.
    batch_size: the most examples in a batch. A group of n makes ⌈n / batch_size⌉ batches whose sizes differ by at most 1.
    max_tokens: instead, the most slots in a padded batch, its examples times its longest length. A group's batch size is
    then `max_tokens // longest`, with the longest length of the group.

    Raises ValueError if not exactly one of the two is given, either or `buckets` is not a whole number of at least 1,
    there are more groups than examples, a length is not a whole number of at least 1 or exceeds `max_tokens`; and
    TypeError if `generator` is not a torch.Generator.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Int[Tensor, " examples"],
        *,
        buckets: int,
        generator: torch.Generator,
        batch_size: int | None = None,
        max_tokens: int | None = None,
    ):
        lengths = _checked(lengths)
        if (batch_size is None) == (max_tokens is None):
            raise ValueError(
                f"exactly one of batch_size and max_tokens must be given (got {batch_size!r} and {max_tokens!r})"
            )
        for name, size in (("buckets", buckets), ("batch_size", batch_size), ("max_tokens", max_tokens)):
            if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
                raise ValueError(f"{name} must be a whole number of at least 1 (got {size!r})")
        if buckets > len(lengths):
            raise ValueError(f"buckets must be at most the number of examples, {len(lengths)} (got {buckets})")
        if max_tokens is not None and max_tokens < lengths.max():
            raise ValueError(
                f"max_tokens must be at least the longest length, that of example {int(lengths.argmax())}, "
                f"{int(lengths.max())} (got {max_tokens})"
            )
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator (got {generator!r})")
        self.generator = generator
        order = self._shuffled(torch.arange(len(lengths)))
        self._groups = order[lengths[order].argsort(stable=True)].tensor_split(buckets)
        sizes = [batch_size or max_tokens // int(lengths[group[-1]]) for group in self._groups]
        self._counts = [-(-len(group) // size) for group, size in zip(self._groups, sizes, strict=True)]

    def __len__(self) -> int:
        """The number of batches, the same in every epoch."""
        return sum(self._counts)

    def __iter__(self) -> Iterator[list[int]]:
        # Nothing is drawn before the first batch is asked for: a loader with workers makes two iterators, to use one.
        groups = zip(self._groups, self._counts, strict=True)
        batches = [batch.tolist() for group, count in groups for batch in self._shuffled(group).tensor_split(count)]
        for i in self._shuffled(torch.arange(len(batches))):
            yield batches[i]

    def _shuffled(self, indices: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        where = self.generator.device
        return indices[torch.randperm(len(indices), generator=self.generator, device=where).cpu()]


class Padded(NamedTuple):
    """Sequences side by side, and how long each is."""

    padded: Shaped[Tensor, "time batch ..."]
    lengths: Int[Tensor, " batch"]


def pad(sequences: Sequence[Shaped[Tensor, "letters ..."]], value: float, padding_side: str = "right") -> Padded:
    """Sequences as the columns of one tensor, as long as the longest, the rest of each filled with `value`.

    torch's `pad_sequence`, with the lengths (Int64, on the CPU, as `pack_padded_sequence` wants them). `padding_side` is
    "right" for padding behind a sequence, at the last steps, or "left" for padding in front of it.

    Raises ValueError if there is no sequence, one is empty, or they differ in dtype, device or features; if `value` is
    one of the letters of integer sequences, as then no letter could be told from padding, or does not fit their dtype;
    or if `padding_side` is another word. Raises TypeError if a sequence is no tensor.
    """
    if padding_side not in ("right", "left"):
        raise ValueError(f'padding_side must be "right" or "left" (got {padding_side!r})')
    if len(sequences) == 0:
        raise ValueError("sequences must hold at least one (got none)")
    for i, sequence in enumerate(sequences):
        if not isinstance(sequence, Tensor):
            raise TypeError(f"sequences must be tensors (got {type(sequence).__name__} as number {i})")
        if sequence.ndim == 0 or len(sequence) == 0:
            raise ValueError(
                f"sequences must have at least one letter (got shape {tuple(sequence.shape)} as number {i})"
            )
    kinds = list(dict.fromkeys((one.dtype, one.device, tuple(one.shape[1:])) for one in sequences))
    if len(kinds) > 1:
        raise ValueError(f"sequences must have the same dtype, device and features (got {kinds[0]} and {kinds[1]})")
    _check_value(value, sequences)
    # From the left as the mirror image, since pad_sequence knows sides only from torch 2.5 on.
    flips = (0,) if padding_side == "left" else ()
    padded = pad_sequence([one.flip(flips) for one in sequences], padding_value=value).flip(flips)
    return Padded(padded, torch.tensor([len(one) for one in sequences]))


class Waste(NamedTuple):
    """How many letters the batches hold, and how many slots beside them are only padding."""

    real: int
    padding: int

    @property
    def share(self) -> float:
        """Of the slots, the share that is padding, from 0 to 1."""
        return self.padding / (self.real + self.padding)


def padded_tokens(lengths: Sequence[int] | Int[Tensor, " examples"], batches: Iterable[Sequence[int]]) -> Waste:
    """What is real and what is padding in `batches` (lists of indices into `lengths`), each as long as its longest.

    A sampler given as `batches` draws an epoch for it.

    Raises ValueError if there is no batch, one is empty, or a length is not a whole number of at least 1; IndexError if
    an index has no length.
    """
    lengths, real, slots = _checked(lengths), 0, 0
    for i, batch in enumerate(batches):
        if len(batch) == 0:
            raise ValueError(f"batches must hold at least one example each (got none in batch {i})")
        here = lengths[torch.as_tensor(batch)]
        real += int(here.sum())
        slots += len(here) * int(here.max())
    if slots == 0:
        raise ValueError("batches must hold at least one batch (got none)")
    return Waste(real, slots - real)


def _checked(lengths: Sequence[int] | Tensor) -> Int[Tensor, " examples"]:
    lengths = torch.as_tensor(lengths).cpu()
    if lengths.ndim != 1 or len(lengths) == 0:
        raise ValueError(f"lengths must be one number an example (got shape {tuple(lengths.shape)})")
    if not _is_integer(lengths) or lengths.min() < 1:
        got = f"{int(lengths.min())} as the shortest" if _is_integer(lengths) else lengths.dtype
        raise ValueError(f"lengths must be whole numbers of at least 1 (got {got})")
    return lengths.long()


def _check_value(value: float, sequences: Sequence[Tensor]) -> None:
    """Refuse, for integer sequences, a padding that their dtype cannot hold or that is one of their letters."""
    if not _is_integer(sequences[0]):
        return
    limits = torch.iinfo(sequences[0].dtype)
    if value % 1 != 0 or not limits.min <= value <= limits.max:
        raise ValueError(f"value must be a whole number that {sequences[0].dtype} can hold (got {value!r})")
    for i, sequence in enumerate(sequences):
        if (sequence == value).any():
            where = (sequence == value).nonzero()[0].tolist()
            raise ValueError(
                f"value must not be one of the letters (got {value!r}, which sequence {i} has at {where}); "
                "use a number of its own for padding"
            )


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
