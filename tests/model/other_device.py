"""Several devices for a machine that has one: they compute on the CPU, and refuse to meet each other's tensors."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


CPU = torch.device("cpu")
FIRST, SECOND = torch.device("ipu", 0), torch.device("ipu", 1)  # a type that torch knows and loads no driver for
TRANSFERS = {"aten::_to_copy", "aten::copy_"}
TAKES_INDICES_FROM_THE_CPU = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class Elsewhere(torch.Tensor):
    """A tensor on another device; torch's C++ takes it for one on "meta", which needs no driver either."""

    device = property(lambda self: self.place)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here, place):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, **layout, device="meta")

    def __init__(self, here, place):
        self.here, self.place = here, place

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class KeepNumbers(TorchFunctionMode):
    """Makes tensors of the numbers that C++ would put on "meta", where they are lost."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.tensor:
            args = tree_map_only(Elsewhere, lambda tensor: tensor.here, args)
        elif func is torch.where:
            args = tree_map_only(float, torch.tensor, args)
        elif func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
            args = (args[0], index, *tree_map_only((int, float), torch.tensor, args[2:]))
        return func(*args, **(kwargs or {}))


class Devices(TorchDispatchMode):
    """While it is on, tensors can be made on the other devices and moved there."""

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes its tensor here and moves it
        self.numbers = KeepNumbers()
        self.numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.numbers.__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    """One operation, where its tensors are; CPU tensors of one number may join them, as torch has it."""
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    places = {tensor.device for tensor in tensors if isinstance(tensor, Elsewhere)}
    if any(not isinstance(tensor, Elsewhere) and tensor.ndim > 0 for tensor in tensors):
        places |= set() if places and name in TAKES_INDICES_FROM_THE_CPU else {CPU}
    if len(places) > 1 and name not in TRANSFERS:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {sorted(map(str, places))}")
    place = args[0].device if name == "aten::copy_" else next(iter(places), CPU)
    if (target := kwargs.get("device")) is not None:
        if torch.device(target).type != "meta" or not places:  # "meta" is what C++ believes
            place = torch.device(target)
        kwargs = {**kwargs, "device": CPU if place.type == FIRST.type else place}
    here = tree_map_only(Elsewhere, lambda tensor: tensor.here, (args, kwargs))
    result = func(*here[0], **here[1])
    if func._schema.is_mutable and tensors and result is here[0][0]:
        return args[0]
    return tree_map_only(torch.Tensor, lambda t: Elsewhere(t, place), result) if place.type == FIRST.type else result
