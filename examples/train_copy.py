"""Train a small Transformer to copy a sequence, on the CPU, with NumPy and cattn alone.

    pip install cattn && python examples/train_copy.py

The model reads random letters and a separator, and must then say the letters again, one at a time. At each of these
places its attention has to find the one that stands a fixed number of places before. The layer is written out, forward
and backward, with `cattn.attention` and `cattn.attention_backward` in the middle, and so is the optimiser (Adam).

If PyTorch is installed, the program also trains the same layer there: the same weights in the beginning, the same
batches, PyTorch's own optimiser, and PyTorch's recorded gradients, in which attention is that of `cattn.torch`. The two
loss curves are the same.
"""

import argparse
import importlib.util
import time

import numpy as np

import cattn

LETTERS, LENGTH, SIZE, HEADS = 16, 12, 32, 2
SEPARATOR = LETTERS
TOKENS = 2 * LENGTH  # what the model reads: the letters, the separator, and the letters again but for the last


def first_weights(random, dtype):
    """Return the weights to begin with, by name."""
    shapes = {
        "embed": (LETTERS + 1, SIZE),
        "position": (TOKENS, SIZE),
        "qkv": (SIZE, 3 * SIZE),
        "project": (SIZE, SIZE),
        "up": (SIZE, 4 * SIZE),
        "down": (4 * SIZE, SIZE),
        "unembed": (SIZE, LETTERS),
    }
    return {name: (random.standard_normal(shape) / np.sqrt(SIZE)).astype(dtype) for name, shape in shapes.items()}


def batch(random, sequences=32):
    """Return what the model reads, (sequences, TOKENS), and what it must say at the last LENGTH places."""
    letters = random.integers(0, LETTERS, (sequences, LENGTH))
    separator = np.full((sequences, 1), SEPARATOR)
    return np.concatenate([letters, separator, letters[:, :-1]], axis=1), letters


def normalise(x):
    """Return each row divided by its root mean square, and the factors."""
    factor = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
    return x * factor, factor


def normalise_backward(grad, normal, factor):
    """Return the gradient of `x` from that of `normalise(x)`."""
    return factor * (grad - normal * (grad * normal).mean(axis=-1, keepdims=True))


def softmax_loss(logits, targets):
    """Return the mean cross-entropy, and its gradient with respect to the logits."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_weights = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = targets[..., None]
    grad = np.exp(log_weights)
    np.put_along_axis(grad, chosen, np.take_along_axis(grad, chosen, axis=-1) - 1, axis=-1)
    return -np.take_along_axis(log_weights, chosen, axis=-1).mean(), grad / targets.size


def step(weights, tokens, targets):
    """Return the loss of a batch, its gradients by the names of the weights, and the letters that the model says."""
    heads = (*tokens.shape, HEADS, SIZE // HEADS)
    w = weights

    # Forward, line by line
    x = w["embed"][tokens] + w["position"]
    n, n_factor = normalise(x)
    query, key, value = (part.reshape(heads) for part in np.split(n @ w["qkv"], 3, axis=-1))
    out, lse = cattn.attention(query, key, value, causal=True, layout="blhd", return_lse=True)
    joined = out.reshape(x.shape)
    y = x + joined @ w["project"]
    m, m_factor = normalise(y)
    hidden = np.maximum(m @ w["up"], 0)
    z = y + hidden @ w["down"]
    said = z[:, LENGTH:]
    logits = said @ w["unembed"]
    loss, grad_logits = softmax_loss(logits, targets)

    # Backward, in the opposite order. The comment is the line whose inputs get their gradients.
    grads = {}
    # logits = said @ w["unembed"]
    grads["unembed"] = outer(said, grad_logits)
    grad_z = np.zeros_like(z)
    grad_z[:, LENGTH:] = grad_logits @ w["unembed"].T
    # z = y + hidden @ w["down"]
    grads["down"] = outer(hidden, grad_z)
    grad_hidden = grad_z @ w["down"].T
    # hidden = np.maximum(m @ w["up"], 0)
    grad_up = np.where(hidden > 0, grad_hidden, 0)
    grads["up"] = outer(m, grad_up)
    # m, m_factor = normalise(y)
    grad_y = grad_z + normalise_backward(grad_up @ w["up"].T, m, m_factor)
    # y = x + joined @ w["project"]
    grads["project"] = outer(joined, grad_y)
    grad_out = (grad_y @ w["project"].T).reshape(heads)
    # out, lse = cattn.attention(query, key, value, causal=True, layout="blhd", return_lse=True)
    found = cattn.attention_backward(grad_out, query, key, value, out, lse, causal=True, layout="blhd")
    # query, key, value = (part.reshape(heads) for part in np.split(n @ w["qkv"], 3, axis=-1))
    grad_qkv = np.concatenate([part.reshape(x.shape) for part in (found.query, found.key, found.value)], axis=-1)
    grads["qkv"] = outer(n, grad_qkv)
    # n, n_factor = normalise(x)
    grad_x = grad_y + normalise_backward(grad_qkv @ w["qkv"].T, n, n_factor)
    # x = w["embed"][tokens] + w["position"]
    grads["position"] = grad_x.sum(axis=0)
    grads["embed"] = np.zeros_like(w["embed"])
    np.add.at(grads["embed"], tokens, grad_x)
    return loss, grads, logits.argmax(axis=-1)


def outer(x, grad):
    """Return the gradient of w from that of `x @ w`, summed over all tokens."""
    return x.reshape(-1, x.shape[-1]).T @ grad.reshape(-1, grad.shape[-1])


class Adam:
    """Move weights against their gradients (Kingma and Ba, 2015, algorithm 1, https://arxiv.org/abs/1412.6980)."""

    def __init__(self, weights, rate, beta1=0.9, beta2=0.999, eps=1e-8):
        self.weights, self.rate, self.betas, self.eps = weights, rate, (beta1, beta2), eps
        self.moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in weights.items()}
        self.steps = 0

    def step(self, grads):
        self.steps += 1
        for name, weight in self.weights.items():
            first, second = self.moments[name]
            for moment, beta, power in zip((first, second), self.betas, (1, 2), strict=True):
                moment *= beta
                moment += (1 - beta) * grads[name] ** power
            mean, square = (m / (1 - beta**self.steps) for m, beta in zip((first, second), self.betas, strict=True))
            weight -= self.rate * mean / (np.sqrt(square) + self.eps)


def train_with_numpy(options):
    """Return the losses, and the share of letters that the trained model copies in new sequences."""
    weights = first_weights(np.random.default_rng(options.seed), options.dtype)
    random = np.random.default_rng(options.seed + 1)
    optimiser, losses = Adam(weights, options.rate), []
    for _ in range(options.steps):
        loss, grads, _ = step(weights, *batch(random))
        optimiser.step(grads)
        losses.append(float(loss))
    tokens, letters = batch(np.random.default_rng(options.seed + 2))
    _, _, said = step(weights, tokens, letters)
    return losses, (said == letters).mean()


def train_with_pytorch(options):
    """Return the losses of the same training, in which PyTorch records the steps."""
    import torch
    import torch.nn.functional as F

    from cattn.torch import scaled_dot_product_attention

    def normalised(x):
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + 1e-5)

    def loss_of(w, tokens, targets):
        x = w["embed"][tokens] + w["position"]
        qkv = (normalised(x) @ w["qkv"]).unflatten(-1, (3, HEADS, SIZE // HEADS))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out = scaled_dot_product_attention(query, key, value, is_causal=True)
        y = x + out.transpose(1, 2).flatten(2) @ w["project"]
        z = y + torch.relu(normalised(y) @ w["up"]) @ w["down"]
        return F.cross_entropy((z[:, LENGTH:] @ w["unembed"]).flatten(0, 1), targets.flatten())

    weights = first_weights(np.random.default_rng(options.seed), options.dtype)
    weights = {name: torch.from_numpy(weight).requires_grad_() for name, weight in weights.items()}
    random = np.random.default_rng(options.seed + 1)
    optimiser, losses = torch.optim.Adam(weights.values(), options.rate), []
    for _ in range(options.steps):
        loss = loss_of(weights, *map(torch.from_numpy, batch(random)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rate", type=float, default=3e-3, help="the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    options = parser.parse_args()

    start = time.perf_counter()
    losses, copied = train_with_numpy(options)
    seconds = time.perf_counter() - start
    curves = [losses]
    if importlib.util.find_spec("torch") and importlib.util.find_spec("ml_dtypes"):
        curves.append(train_with_pytorch(options))
    print("step    loss with NumPy" + "    with PyTorch" * (len(curves) > 1))
    for n in sorted({*range(0, options.steps, max(1, options.steps // 8)), options.steps - 1}):
        print(f"{n:4}" + "".join(f"{curve[n]:18.6f}" for curve in curves))
    print(f"{100 * copied:.1f}% of the letters of new sequences are copied, after {seconds:.1f} s of training")
    if len(curves) > 1:
        print(f"the losses differ by at most {np.abs(np.subtract(*curves)).max():.0e}")


if __name__ == "__main__":
    main()
