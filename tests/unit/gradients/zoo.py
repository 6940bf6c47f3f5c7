"""Networks of every kind, and their losses."""
# ruff: noqa: E501

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from multitask.weighting.base import Rows

Make = Callable[[], nn.Module]


class By(nn.Module):
    """A module whose forward pass is a function of named modules and parameters."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def numbers(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def images(n: int) -> Tensor:
    return torch.randn(n, 4, 6, 6)


def videos(n: int) -> Tensor:
    return torch.randn(n, 3, 4, 6, 6)


def tokens(n: int) -> Tensor:
    return torch.randn(n, 5, 8)


def words(n: int) -> Tensor:
    return torch.randint(0, 11, (n, 5))


def vectors(n: int) -> Tensor:
    return torch.randn(n, 8)


def frames(s: nn.Module, x: Tensor) -> Tensor:
    """Flatten frames and examples into one dimension, frames first."""
    n, t = x.shape[:2]
    return s.out(torch.tanh(s.a(x.transpose(0, 1).flatten(0, 1)))).unflatten(0, (t, n)).flatten(2).mean(0)


def last_frame(s: nn.Module, x: Tensor) -> Tensor:
    n, t = x.shape[:2]
    return torch.tanh(s.a(x.transpose(0, 1).flatten(0, 1))).unflatten(0, (t, n))[-1].flatten(1)


def attention(s: nn.Module, x: Tensor) -> Tensor:
    q, k, v = s.qkv(x).view(len(x), 5, 2, 12).transpose(1, 2).chunk(3, -1)
    return s.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


def recurrent(s: nn.Module, x: Tensor) -> Tensor:
    out, _ = s.rnn(x)
    return out.mean(1)


def recurrent_first(s: nn.Module, x: Tensor) -> Tensor:
    out, _ = s.rnn(x.transpose(0, 1))
    return out[-1]


def fourier(s: nn.Module, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(x.transpose(1, 2))
    mixed = torch.einsum("ncf,cdf->ndf", spectrum, s.w)
    return torch.fft.irfft(mixed, 5).mean(2)


def complex_layer(s: nn.Module, x: Tensor) -> Tensor:
    return (torch.complex(x, x.flip(1)) @ s.w + s.b).abs() @ s.real


class Scaled(torch.autograd.Function):
    """Scales features, with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return gradient * scale, (gradient * x).sum(0)


def by_sign(s: nn.Module, x: Tensor) -> Tensor:
    """Each example takes one of two branches."""
    out = x.new_zeros(len(x), 8)
    left = x.sum(1) > 0
    if left.any():
        out = out.index_put((left.nonzero().flatten(),), s.a(x[left]))
    if (~left).any():
        out = out.index_put(((~left).nonzero().flatten(),), s.b(x[~left]))
    return out


def twice(s: nn.Module, x: Tensor) -> Tensor:
    return s.a(torch.tanh(s.a(x)))


def hooked(factor: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        hidden = torch.tanh(s.a(x))
        hidden.register_hook(factor)
        out = s.b(hidden)
        out.register_hook(factor)
        return out

    return forward


def with_hook(module: nn.Module, name: str) -> nn.Module:
    module.get_parameter(name).register_hook(lambda gradient: gradient * 3)
    return module


def per_sample(s: nn.Module, x: Tensor) -> Tensor:
    parameters = {"weight": s.a.weight, "bias": s.a.bias}
    return torch.func.vmap(lambda one: torch.func.functional_call(s.a, parameters, (one,)).tanh())(x)


def derivative(s: nn.Module, x: Tensor) -> Tensor:
    """The derivative of the network, through torch.func."""

    def output(one: Tensor) -> Tensor:
        return s.b(torch.tanh(s.a(one))).sum()

    return torch.func.vmap(torch.func.grad(output))(x)


def force(s: nn.Module, x: Tensor) -> Tensor:
    """The derivative of the network, through autograd."""
    x = x.detach().requires_grad_()
    energy = s.b(torch.tanh(s.a(x))).square().sum(1)
    (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    return torch.cat([gradient, energy[:, None]], 1)


def sparse_inputs(s: nn.Module, x: Tensor) -> Tensor:
    return torch.sparse.mm(x.relu().to_sparse(), s.w.t()) + s.b


def compiled(s: nn.Module, x: Tensor) -> Tensor:
    return s.inner(x)


def conv(*args: int, **options: object) -> Make:
    """A convolution after a pointwise one."""
    return lambda: nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.Tanh(), nn.Conv2d(8, 8, *args, **options), nn.Flatten()
    )


ZOO: dict[str, tuple[Make, Callable[[int], Tensor]]] = {
    "linear": (lambda: nn.Linear(8, 6), vectors),
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6)), vectors),
    "wide": (lambda: nn.Sequential(nn.Linear(8, 80), nn.ReLU(True), nn.Linear(80, 60)), vectors),
    "empty": (lambda: By(lambda s, x: s.a(x) + s.none.sum() + s.one, a=nn.Linear(8, 6), none=numbers(0, 3), one=numbers()), vectors),
    "no inputs": (lambda: By(lambda s, x: s.a(x) + s.b(x[:, :0]), a=nn.Linear(8, 6), b=nn.Linear(0, 6)), vectors),
    "zero-dimensional": (lambda: By(lambda s, x: s.a * x + s.b, a=numbers(), b=numbers()), vectors),
    "sums": (lambda: By(lambda s, x: x + (s.a + s.b) + s.c, a=numbers(8), b=numbers(8), c=numbers(1, 1)), vectors),
    "conv": (conv(3, padding=1), images),
    "conv bias alone": (conv(3, bias=False), images),
    "one large kernel": (conv(6), images),
    "strided": (conv(3, stride=2, padding=1), images),
    "dilated": (conv(3, dilation=2, padding=2), images),
    "grouped": (conv(3, groups=2), images),
    "depthwise": (conv(3, groups=8, padding=1), images),
    "same": (conv(3, padding="same"), images),
    "circular": (conv(3, padding=1, padding_mode="circular"), images),
    "reflect": (conv(3, padding=1, padding_mode="reflect"), images),
    "uneven": (conv((1, 3), padding=(0, 2), stride=(2, 1)), images),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, stride=2), nn.Flatten()), images),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(5, 7, 3), nn.ReLU(), nn.Conv1d(7, 6, 2), nn.Flatten()), tokens),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 2), nn.Flatten()), videos),
    "channels last": (lambda: By(lambda s, x: s.a(x.to(memory_format=torch.channels_last)).flatten(1), a=nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)), images),
    "conv without a batch": (lambda: By(lambda s, x: torch.stack([s.a(one).flatten() for one in x]), a=nn.Conv2d(4, 8, 3)), images),
    "frames, conv": (lambda: By(frames, a=nn.Conv2d(4, 6, 3), out=nn.Conv2d(6, 2, 2)), lambda n: torch.randn(n, 3, 4, 6, 6)),
    "frames, linear": (lambda: By(frames, a=nn.Linear(8, 9), out=nn.Linear(9, 6)), tokens),
    "last frame, linear": (lambda: By(last_frame, a=nn.Linear(8, 9)), tokens),
    "last frame, conv": (lambda: By(last_frame, a=nn.Conv2d(4, 6, 3)), lambda n: torch.randn(n, 3, 4, 6, 6)),
    "mixed frames": (lambda: By(lambda s, x: s.a(x.transpose(1, 2)).transpose(1, 2).mean(1), a=nn.Linear(5, 5)), tokens),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten()), images),
    "layer norm": (lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.LayerNorm((5, 8)), nn.Flatten()), tokens),
    "rms norm": (lambda: nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8), nn.Flatten()), tokens),
    "instance norm": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.Flatten()), images),
    "batch norm, evaluated": (lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU()).eval(), vectors),
    "local response": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.PReLU(8), nn.LocalResponseNorm(2), nn.MaxPool2d(2), nn.Flatten()), images),
    "bilinear": (lambda: By(lambda s, x: s.a(x, x.flip(1)), a=nn.Bilinear(8, 8, 3)), vectors),
    "embedding": (lambda: By(lambda s, x: s.a(x).mean(1), a=nn.Embedding(11, 6)), words),
    "embedding, padded": (lambda: By(lambda s, x: s.a(x).flatten(1), a=nn.Embedding(11, 6, padding_idx=0)), words),
    "embedding, by frequency": (lambda: By(lambda s, x: s.a(x).mean(1), a=nn.Embedding(11, 6, scale_grad_by_freq=True)), words),
    "embedding, sparse": (lambda: By(lambda s, x: s.a(x).mean(1), a=nn.Embedding(11, 6, sparse=True)), words),
    "embedding, words first": (lambda: By(lambda s, x: s.a(x.t()).tanh().mean(0), a=nn.Embedding(11, 6)), words),
    "bag": (lambda: nn.EmbeddingBag(11, 6, mode="mean"), words),
    "bag, largest": (lambda: nn.EmbeddingBag(11, 6, mode="max"), words),
    "bag, sparse": (lambda: nn.EmbeddingBag(11, 6, mode="sum", sparse=True), words),
    "lstm": (lambda: By(recurrent, rnn=nn.LSTM(8, 6, batch_first=True)), tokens),
    "lstm, frames first": (lambda: By(recurrent_first, rnn=nn.LSTM(8, 6, 2)), tokens),
    "gru, both ways": (lambda: By(recurrent, rnn=nn.GRU(8, 3, batch_first=True, bidirectional=True)), tokens),
    "attention": (lambda: By(attention, qkv=nn.Linear(8, 24), out=nn.Linear(8, 6)), tokens),
    "multihead": (lambda: By(lambda s, x: s.a(x, x, x)[0].mean(1), a=nn.MultiheadAttention(8, 2, batch_first=True)), tokens),
    "multihead, tokens first": (lambda: By(lambda s, x: s.a(*[x.transpose(0, 1)] * 3, need_weights=False)[0].mean(0), a=nn.MultiheadAttention(8, 2)), tokens),
    "encoder": (lambda: By(lambda s, x: s.a(x).mean(1), a=nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)), tokens),
    "reused": (lambda: By(twice, a=nn.Linear(8, 8)), vectors),
    "two branches": (lambda: By(by_sign, a=nn.Linear(8, 8), b=nn.Linear(8, 8)), vectors),
    "checkpointed": (lambda: By(lambda s, x: checkpoint(lambda y: torch.tanh(s.a(y)), s.b(x), use_reentrant=False), a=nn.Linear(8, 6), b=nn.Linear(8, 8)), vectors),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 9)), nn.Tanh(), nn.Linear(9, 6)), vectors),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 9)), nn.Tanh(), nn.Linear(9, 6)).eval(), vectors),
    "low rank": (lambda: By(lambda s, x: nn.functional.linear(x, s.w + s.b @ s.a), w=numbers(6, 8), b=numbers(6, 2), a=numbers(2, 8)), vectors),
    "low rank in parallel": (lambda: By(lambda s, x: s.w(x) + s.b(s.a(x)) * 0.5, w=nn.Linear(8, 6), a=nn.Linear(8, 2, bias=False), b=nn.Linear(2, 6, bias=False)), vectors),
    "scaled weight": (lambda: By(lambda s, x: nn.functional.linear(x, s.w * s.g, s.b * 2), w=numbers(6, 8), g=numbers(6, 1), b=numbers(6)), vectors),
    "weight from the left": (lambda: By(lambda s, x: (s.w @ x.T).T, w=numbers(6, 8)), vectors),
    "weight untransposed": (lambda: By(lambda s, x: x @ s.w + s.b, w=numbers(8, 6), b=numbers(6)), vectors),
    "square weight untransposed": (lambda: By(lambda s, x: torch.tanh(x @ s.w) @ s.w.T, w=numbers(8, 8)), vectors),
    "bias of two dimensions": (lambda: By(lambda s, x: torch.addmm(s.b, x, s.w.t()), w=numbers(6, 8), b=numbers(1, 6)), vectors),
    "scaled product": (lambda: By(lambda s, x: torch.addmm(s.b, x, s.w.t(), beta=0.5, alpha=2), w=numbers(6, 8), b=numbers(6)), vectors),
    "einsum": (lambda: By(lambda s, x: torch.einsum("nld,qd->nq", x, s.w), w=numbers(6, 8)), tokens),
    "complex": (lambda: By(complex_layer, w=nn.Parameter(torch.randn(8, 8, dtype=torch.complex128)), b=nn.Parameter(torch.randn(8, dtype=torch.complex128)), real=numbers(8, 6)), vectors),
    "complex behind an odd number": (lambda: By(lambda s, x: (x[:, :3] * s.a * s.w).abs() + s.a, a=numbers(3), w=nn.Parameter(torch.randn(3, dtype=torch.complex128))), vectors),
    "fourier": (lambda: By(fourier, w=nn.Parameter(torch.randn(8, 6, 3, dtype=torch.complex128))), tokens),
    "hook that scales": (lambda: By(hooked(lambda g: g * 2), a=nn.Linear(8, 9), b=nn.Linear(9, 6)), vectors),
    "hook that clips": (lambda: By(hooked(lambda g: g.clamp(-0.05, 0.05)), a=nn.Linear(8, 9), b=nn.Linear(9, 6)), vectors),
    "hook that observes": (lambda: By(hooked(lambda g: None), a=nn.Linear(8, 9), b=nn.Linear(9, 6)), vectors),
    "hook on a weight": (lambda: with_hook(nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 6)), "0.weight"), vectors),
    "hook on a bias": (lambda: with_hook(nn.Sequential(nn.Linear(8, 90), nn.Tanh(), nn.Linear(90, 60)), "0.bias"), vectors),
    "vmap": (lambda: By(per_sample, a=nn.Linear(8, 6)), vectors),
    "derivative": (lambda: By(derivative, a=nn.Linear(8, 9), b=nn.Linear(9, 6)), vectors),
    "force": (lambda: By(force, a=nn.Linear(8, 9), b=nn.Linear(9, 6)), vectors),
    "own function": (lambda: By(lambda s, x: Scaled.apply(s.a(x), s.scale), a=nn.Linear(8, 6), scale=numbers(6)), vectors),
    "sparse inputs": (lambda: By(sparse_inputs, w=numbers(6, 8), b=numbers(6)), vectors),
    "integers": (lambda: By(lambda s, x: s.a.weight[x].mean(1) + nn.functional.one_hot(x, 11).double().mean(1) @ s.w.t(), a=nn.Embedding(11, 6), w=numbers(6, 11)), words),
    "sorted": (lambda: By(lambda s, x: s.a(x[x[:, 0].argsort()])[x[:, 0].argsort().argsort()], a=nn.Linear(8, 6)), vectors),
    "rolled": (lambda: By(lambda s, x: s.a(x.roll(1, 0)).roll(-1, 0), a=nn.Linear(8, 60)), vectors),
}  # fmt: skip


class Network(nn.Module):
    """A trunk and ``m`` linear heads, whose outputs are losses per example."""

    def __init__(self, trunk: nn.Module, inputs: Tensor, m: int) -> None:
        super().__init__()
        self.trunk = trunk
        width = trunk(inputs).shape[1]
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(m))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.trunk(x)
        return [head(features).tanh().add(0.3).square().mean(1) for head in self.heads]


def network(name: str, m: int, batch: int) -> tuple[Network, Tensor]:
    """Return a network with ``m`` heads, and a batch of inputs, both in float64."""
    torch.manual_seed(batch)
    make, inputs = ZOO[name]
    x = inputs(batch)
    x = x.double() if x.is_floating_point() else x
    return Network(make().double(), x, m).double(), x


def losses_of(network: nn.Module, x: Tensor, rows: Rows) -> dict[str, Tensor]:
    each = network(x)
    match rows:
        case "task":
            return {str(i): loss.mean() for i, loss in enumerate(each)}
        case "half":
            return {str(i): torch.stack([loss[::2].mean(), loss[1::2].mean()]) for i, loss in enumerate(each)}
        case _:
            return {str(i): loss for i, loss in enumerate(each)}
