"""Forward-mode derivatives by hand: a tensor and its directional derivative go through a network together.

    u, du = jvp(lambda x, t: network(x, t, s), (x, t), (v, ones))          du = (d_x u) v + d_t u

`torch.func.jvp` returns the same numbers, but its u has no graph to the parameters. Here u keeps the graph of the
plain forward pass, so that one can train on it, and each rule computes the tangent from what lies at hand, outside
the graph: u and du cost two forward passes together. `linearize` gives u first and du when the direction is known.

The network is unchanged: a `Dual` takes a tensor's place by `__torch_function__`. What does not depend on the
moving inputs (the parameters, the observation) stays a plain tensor and costs nothing more. A function that a new
backbone needs is one more rule here; without it the error names the function. Not for use under autocast: the
rules take primal and tangent to be of one dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.flow.dual import (
    RULES,
    Dual,
    Function,
    Tape,
    lead,
    moves,
    point_of,
    primal_of,
    rule,
    tangent_of,
)

_aten = torch.ops.aten


def jvp(
    function: Function,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    *,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return (value, derivative along `tangents`) of a function of tensors that returns one tensor.

    Args:
        function: of `primals`.
        primals: the point.
        tangents: the direction; `None` is zero, and cheaper than zeros.
        differentiable: give the derivative a graph, too. The value always has that of the plain call.

    Raises:
        FlowleapError: the function applies a torch function without a rule to something that moves.
    """
    pairs = zip(primals, tangents, strict=True)
    out = function(*(x if dx is None else Dual(x, dx, differentiable) for x, dx in pairs))
    return primal_of(out), tangent_of(out)


def linearize(
    function: Function,
    moving: Sequence[Tensor],
    still: Sequence[Tensor] = (),
    *,
    rows: slice = slice(None),
    differentiable: bool = False,
) -> tuple[Tensor, Callable[..., Tensor]]:
    """Return (`function(*moving, *still)`, push), where `push(*tangents)` is the derivative, to be called once.

    Args:
        function: of tensors [N, ...] to one tensor [N, ...], sample by sample along axis 0.
        moving: the tensors to be differentiated by.
        still: the other tensors of the batch. Tensors from elsewhere must not depend on the sample.
        rows: the samples whose derivative is wanted; the tangents given to `push` and its result have only these.
        differentiable: as in `jvp`.

    Raises:
        FlowleapError: as in `jvp`, or the function moves axis 0.
    """
    tape = Tape(len(moving[0]), rows)
    inputs = [Dual(x, None, differentiable, tape) for x in (*moving, *still)]
    directed = inputs[: len(moving)]
    for dual in directed:
        dual.moves = True
    out = function(*inputs)
    if not isinstance(out, Dual):
        out = inputs[0].still(out)

    def push(*tangents: Tensor) -> Tensor:
        if directed[0].tangent is not None:
            raise FlowleapError("linearize: the derivative was taken already; linearize again")
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            for dual, tangent in zip(directed, tangents, strict=True):
                dual.accept(tangent if differentiable else tangent.detach())
            while tape.steps:  # consumed, so that a tangent is freed when the last step that needs it is done
                dual, step = tape.steps.popleft()
                dual.accept(step())
        return tangent_of(out)

    return out.primal, push


# Linear in the only operand that moves: the tangent goes the way of the primal.


def _alike(function: Function, x: Dual, *args: Any, **kwargs: Any) -> Any:
    return x.lift(function(x.primal, *args, **kwargs), lambda: function(x.tangent, *args, **kwargs))


def _split(function: Function, x: Dual, *args: Any, **kwargs: Any) -> tuple[Dual, ...]:
    tangents = cache(lambda: function(x.tangent, *args, **kwargs))
    parts = function(x.primal, *args, **kwargs)
    return tuple(x.lift(part, partial(lambda i: tangents()[i], i)) for i, part in enumerate(parts))


def _affine(function: Function, input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Dual:
    _check_fixed(function.__name__, weight, bias)
    return input.lift(
        function(input.primal, weight, bias, *args, **kwargs),
        lambda: function(input.tangent, weight, None, *args, **kwargs),
    )


def _check_fixed(name: str, *parameters: Any) -> None:
    if any(isinstance(x, Dual) for x in parameters):
        raise FlowleapError(
            f"the rule of '{name}' in policy/flow/tangent.py takes parameters that do not move; "
            "objective.derivative=jvp works"
        )


def _constant(function: Function, *args: Any, **kwargs: Any) -> Any:
    out = function(*map(primal_of, args), **kwargs)
    return lead(args).still(out) if isinstance(out, Tensor) else out


def _register(kind: Function, owner: Any, names: str) -> None:
    RULES.update({name: partial(kind, getattr(owner, name)) for name in names.split()})


_register(
    _alike, Tensor, "__getitem__ flatten unflatten reshape view transpose permute squeeze unsqueeze expand"
)
_register(_alike, Tensor, "contiguous clone to neg sum mean cumsum flip")
_register(_alike, F, "pad interpolate avg_pool1d")
_register(_split, Tensor, "chunk split unbind")
_register(_affine, F, "linear conv1d conv_transpose1d")
_register(_constant, Tensor, "eq ne lt le gt ge size dim numel")
_register(_constant, torch, "zeros_like ones_like")


# Several operands may move.


@rule("cat")
def _cat(tensors: Sequence[Any], dim: int = 0) -> Dual:
    return _joined(torch.cat, tensors, dim)


@rule("stack")
def _stack(tensors: Sequence[Any], dim: int = 0) -> Dual:
    return _joined(torch.stack, tensors, dim)


def _joined(function: Function, tensors: Sequence[Any], dim: int) -> Dual:
    primal = function([primal_of(x) for x in tensors], dim)
    return lead(tensors).lift(primal, lambda: function([tangent_of(x) for x in tensors], dim))


@rule("add")
def _add(x: Any, y: Any) -> Dual:
    primal = primal_of(x) + primal_of(y)
    if moves(x) and moves(y):
        return x.lift(primal, lambda: x.tangent + y.tangent)
    moving = lead((x, y))
    return moving.lift(primal, lambda: moving.tangent)


@rule("sub")
def _sub(x: Any, y: Any) -> Dual:
    primal = primal_of(x) - primal_of(y)
    if not moves(y):
        return lead((x, y)).lift(primal, lambda: x.tangent)
    return y.lift(primal, lambda: x.tangent - y.tangent if moves(x) else -y.tangent)


@rule("mul")
def _mul(x: Any, y: Any) -> Dual:
    primal = primal_of(x) * primal_of(y)
    if moves(x) and moves(y):
        return x.lift(primal, lambda: torch.addcmul(x.tangent * y.point, x.point, y.tangent))
    first, other = (x, y) if moves(x) or not isinstance(y, Dual) else (y, x)
    return first.lift(primal, lambda: first.tangent * point_of(other))


@rule("div")
def _div(x: Any, y: Any) -> Dual:
    ratio = lead((x, y)).still(primal_of(x) / primal_of(y))
    if not moves(y):
        return lead((x, y)).lift(ratio.primal, lambda: x.tangent / point_of(y))
    if not moves(x):
        return y.lift(ratio.primal, lambda: -ratio.point * y.tangent / y.point)
    return y.lift(ratio.primal, lambda: (x.tangent - ratio.point * y.tangent) / y.point)


@rule("matmul")
def _matmul(x: Any, y: Any) -> Dual:
    primal = primal_of(x) @ primal_of(y)
    if moves(x) and moves(y):
        return x.lift(primal, lambda: x.tangent @ y.point + x.point @ y.tangent)
    if moves(y):
        return y.lift(primal, lambda: point_of(x) @ y.tangent)
    return lead((x, y)).lift(primal, lambda: x.tangent @ point_of(y))


@rule("where")
def _where(condition: Any, x: Any, y: Any) -> Dual:
    primal = torch.where(primal_of(condition), primal_of(x), primal_of(y))
    return lead((condition, x, y)).lift(
        primal, lambda: torch.where(point_of(condition), tangent_of(x), tangent_of(y))
    )


@rule("scaled_dot_product_attention")
def _attention(query: Any, key: Any, value: Any) -> Any:
    """Explicit, whatever moves: the fused kernels keep no attention weights to differentiate by."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return torch.softmax(scores, -1) @ value


# Element by element: f'(x), given x and y = f(x).


def _pointwise(name: str, derivative: Callable[[Tensor, Tensor], Tensor]) -> None:
    function = getattr(torch, name)

    def apply(input: Dual) -> Dual:
        y = input.still(function(input.primal))
        return input.lift(y.primal, lambda: input.tangent * derivative(input.point, y.point))

    RULES[name] = apply


_pointwise("sin", lambda x, y: x.cos())
_pointwise("cos", lambda x, y: -x.sin())
_pointwise("exp", lambda x, y: y)
_pointwise("log", lambda x, y: 1 / x)
_pointwise("sqrt", lambda x, y: 0.5 / y)
_pointwise("square", lambda x, y: 2 * x)
_pointwise("tanh", lambda x, y: 1 - y * y)
_pointwise("sigmoid", lambda x, y: y * (1 - y))
_pointwise("relu", lambda x, y: (x > 0).to(x.dtype))


@rule("pow")
def _pow(x: Any, exponent: Any) -> Dual:
    if not isinstance(x, Dual) or not isinstance(exponent, int | float):
        raise FlowleapError(
            "the rule of 'pow' in policy/flow/tangent.py takes a number as exponent; objective.derivative=jvp works"
        )
    return x.lift(x.primal**exponent, lambda: x.tangent * (exponent * x.point ** (exponent - 1)))


# Symmetric Jacobians: torch's fused backward kernel, written for J^T g, gives J dx. Some have no derivative of their
# own; where the tangent needs a graph, these are spelled out.


@rule("silu")
def _silu(input: Dual, inplace: bool = False) -> Dual:
    def tangent() -> Tensor:
        x = input.point
        if not torch.is_grad_enabled():
            return _aten.silu_backward(input.tangent, x)
        gate = x.sigmoid()
        return input.tangent * gate * (1 + x * (1 - gate))

    return input.lift(F.silu(input.primal), tangent)


@rule("mish")
def _mish(input: Dual, inplace: bool = False) -> Dual:
    def tangent() -> Tensor:
        x = input.point
        if not torch.is_grad_enabled():
            return _aten.mish_backward(input.tangent, x)
        gate = F.softplus(x).tanh()
        return input.tangent * (gate + x * (1 - gate.square()) * x.sigmoid())

    return input.lift(F.mish(input.primal), tangent)


@rule("gelu")
def _gelu(input: Dual, approximate: str = "none") -> Dual:
    return input.lift(
        F.gelu(input.primal, approximate=approximate),
        lambda: _aten.gelu_backward(input.tangent, input.point, approximate=approximate),
    )


@rule("softmax")
def _softmax(input: Dual, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Dual:
    y = input.still(torch.softmax(input.primal, dim, dtype))
    return input.lift(
        y.primal, lambda: _aten._softmax_backward_data(input.tangent.to(y.dtype), y.point, dim, y.dtype)
    )


def _standardized(
    dx: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, rstd: Tensor, eps: float
) -> Tensor:
    """Tangent of (x - mean) * rstd with the moments over the last axes, those of `shape`."""
    if not torch.is_grad_enabled():
        mask = (True, False, False)
        return _aten.native_layer_norm_backward(dx.contiguous(), x, shape, mean, rstd, None, None, mask)[0]

    def centred(y: Tensor) -> Tensor:
        return y - y.mean(axes, keepdim=True)

    axes = tuple(range(-len(shape), 0))
    y, dy = centred(x), centred(dx)
    rstd = (y.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = y * rstd
    return rstd * (dy - y * (y * dy).mean(axes, keepdim=True))


@rule("layer_norm")
def _layer_norm(
    input: Dual, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Dual:
    _check_fixed("layer_norm", weight, bias)
    y, *moments = torch.native_layer_norm(input.primal, normalized_shape, weight, bias, eps)
    mean, rstd = map(input.still, moments)

    def tangent() -> Tensor:
        d = _standardized(input.tangent, input.point, normalized_shape, mean.point, rstd.point, eps)
        return d if weight is None else d * weight

    return input.lift(y, tangent)


@rule("group_norm")
def _group_norm(
    input: Dual, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Dual:
    _check_fixed("group_norm", weight, bias)
    x = input.still(input.primal.contiguous())
    batch, channels, *places = x.shape
    area = math.prod(places)
    y, *moments = torch.native_group_norm(x.primal, weight, bias, batch, channels, area, num_groups, eps)
    mean, rstd = (input.still(moment[..., None]) for moment in moments)

    def tangent() -> Tensor:
        shape = (-1, num_groups, channels // num_groups * area)
        rows = input.tangent.reshape(shape), x.point.view(shape)
        d = _standardized(*rows, shape[2:], mean.point, rstd.point, eps).view(-1, channels, *places)
        return d if weight is None else d * weight.view(-1, *[1] * len(places))

    return input.lift(y, tangent)


@rule("dropout")
def _dropout(input: Dual, p: float = 0.5, training: bool = True, inplace: bool = False) -> Dual:
    """One mask for both."""
    if not training or not p:
        return input
    return input * input.still(F.dropout(torch.ones_like(input.primal), p))
