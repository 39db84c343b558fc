"""Looking at autograd's graph: from where to where can a gradient go?"""

from torch import Tensor


def reached(tensor: Tensor) -> set[Tensor]:
    """The leaves to which `tensor.backward()` can carry a gradient: parameters, and other tensors that were made to want one.

    tensor: of any shape.

    It walks autograd's graph from node to node, so it says where a gradient *can* go; that which arrives may still be zero. A tensor
    without a graph reaches nothing, and a leaf that wants a gradient itself. What runs in a graph of its own, as in reentrant
    checkpointing, is not seen. Raises TypeError for what is no tensor.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a tensor (got {type(tensor).__name__})")
    if tensor.grad_fn is None:
        return {tensor} if tensor.requires_grad else set()
    leaves, seen, ahead = set(), set(), [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the node that adds to a leaf's .grad
            leaves.add(node.variable)
        ahead += [before for before, _ in node.next_functions]
    return leaves
