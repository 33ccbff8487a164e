"""The object that carries a tensor and its directional derivative; the rules are in `tangent.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError

Function: TypeAlias = Callable[..., Any]

RULES: dict[str, Function] = {}


class Tape:
    """The tangents of a traced computation, to be computed later and only for some `rows` of the batch."""

    def __init__(self, batch: int, rows: slice) -> None:
        self.batch = batch
        self.rows = rows
        self.size = len(range(batch)[rows])
        self.steps: deque[tuple[Dual, Callable[[], Tensor]]] = deque()


def _operator(name: str, swapped: bool = False) -> Callable[[Any, Any], Any]:
    if swapped:
        return lambda x, y: RULES[name](y, x)
    return lambda x, y: RULES[name](x, y)


class Dual:
    """A tensor and its directional derivative; what is computed from it by the functions in `RULES` is a `Dual`.

    Args:
        primal: the tensor; results have the autograd graph of the plain computation.
        tangent: its derivative, of the same shape and dtype, never changed in place; `None` is zero.
        differentiable: tangents get a graph too, so that a loss may use them. Results inherit it.

    Raises:
        FlowleapError: on a torch function without a rule.
    """

    __slots__ = ("differentiable", "moves", "primal", "tangent", "tape")
    __hash__ = None  # type: ignore[assignment]  # because == compares values

    def __init__(
        self, primal: Tensor, tangent: Tensor | None, differentiable: bool = False, tape: Tape | None = None
    ) -> None:
        self.primal = primal
        self.tangent: Any = tangent if tangent is None or differentiable else tangent.detach()
        self.moves = tangent is not None
        self.differentiable = differentiable
        self.tape = tape

    @property
    def point(self) -> Tensor:
        """The primal where the tangent is taken: the tape's rows of it."""
        return self.primal if self.tape is None else self.primal[self.tape.rows]

    def still(self, primal: Tensor) -> Dual:
        """A result with zero tangent."""
        return Dual(primal, None, self.differentiable, self.tape)

    def lift(self, primal: Tensor, tangent: Callable[[], Tensor]) -> Dual:
        """The result of a rule: its value, and how to compute its tangent if this operand moves."""
        out = self.still(primal)
        if self.moves:
            out.moves = True
            if self.tape is None:
                with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
                    out.accept(tangent())
            else:
                if not primal.ndim or len(primal) != self.tape.batch:
                    raise FlowleapError("linearize: the network mixes or moves the batch axis 0")
                self.tape.steps.append((out, tangent))
        return out

    def accept(self, tangent: Tensor) -> None:
        """Store the tangent, broadcast as the primal was."""
        shape = self.primal.shape if self.tape is None else (self.tape.size, *self.primal.shape[1:])
        self.tangent = tangent if tangent.shape == shape else tangent.expand(shape)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return find_rule(function.__name__)(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "device", "ndim"):
            return getattr(self.primal, name)
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"a Dual has no attribute {name!r}")
        return partial(find_rule(name), self)

    def __len__(self) -> int:
        return len(self.primal)

    def __getitem__(self, index: Any) -> Dual:
        return RULES["__getitem__"](self, index)

    def __neg__(self) -> Dual:
        return RULES["neg"](self)

    __add__ = __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("sub"), _operator("sub", swapped=True)
    __mul__ = __rmul__ = _operator("mul")
    __truediv__, __rtruediv__ = _operator("div"), _operator("div", swapped=True)
    __pow__, __matmul__ = _operator("pow"), _operator("matmul")
    __eq__, __ne__ = _operator("eq"), _operator("ne")
    __lt__, __le__, __gt__, __ge__ = _operator("lt"), _operator("le"), _operator("gt"), _operator("ge")


def find_rule(name: str) -> Function:
    """The rule of a torch function, method or operator; raise `FlowleapError` if there is none."""
    if name not in RULES:
        raise FlowleapError(
            f"torch function '{name}' has no derivative rule in policy/flow/tangent.py; "
            "objective.derivative=jvp works without"
        )
    return RULES[name]


def rule(*names: str) -> Callable[[Function], Function]:
    """Decorator: the rule of the torch functions, methods and operators of these names."""

    def decorate(function: Function) -> Function:
        RULES.update(dict.fromkeys(names, function))
        return function

    return decorate


def primal_of(x: Any) -> Any:
    """The primal of a `Dual`; anything else as it is."""
    return x.primal if isinstance(x, Dual) else x


def point_of(x: Any) -> Any:
    """The point of a `Dual`; anything else as it is."""
    return x.point if isinstance(x, Dual) else x


def moves(x: Any) -> bool:
    """Whether `x` is a `Dual` with a tangent."""
    return isinstance(x, Dual) and x.moves


def tangent_of(x: Any) -> Any:
    """The tangent, or zeros."""
    if moves(x):
        return x.tangent
    point = point_of(x)
    return torch.zeros_like(point) if isinstance(point, Tensor) else 0.0


def lead(operands: Sequence[Any]) -> Dual:
    """An operand that moves if there is one, else any `Dual`."""
    return max((x for x in operands if isinstance(x, Dual)), key=moves)
