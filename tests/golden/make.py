"""Goldens from PyTorch: transformers' GPT-2 and ten steps of torch.optim.AdamW, in f64 and in f32.

    python3 tests/golden/make.py

writes tests/golden/NAME.safetensors for each shape below. A golden holds, for each quantity, the f64 result and two
numbers: how far PyTorch's own f32 lies from it, and its size (2-norms). Weights and tokens are not stored: they are a
formula that tests/golden.rs repeats. Of a tensor with more than WHOLE elements only a sketch is kept, 64 sums of all its
elements with random signs: the norm of a difference of two sketches over 8 is the norm of the difference of the tensors,
to about a tenth, and there is no element that it does not see.
"""

import os

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import GPT2Config, GPT2LMHeadModel

SHAPES = {
    # name: heads, width, layers, positions, vocabulary, sequences
    "wide": (3, 84, 2, 37, 211, 2),
    "deep": (5, 40, 3, 19, 97, 3),
}
STEPS, LR, BETAS, EPS, DECAY, CLIP = 10, 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
WHOLE = 64


def mix(x):
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014), vectorised."""
    with np.errstate(over="ignore"):
        x = (np.asarray(x, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def noise(key, count):
    """`count` multiples of 2^-12 in [-1/2, 1/2): exact in f32."""
    index = np.uint64(key << 32) + np.arange(count, dtype=np.uint64)
    return (mix(index) >> np.uint64(52)).astype(np.float64) / 4096 - 0.5


def initial(key, name, shape):
    """Matrices are noise; gains lie about 1, biases about 0, and none on it."""
    values = noise(key, int(np.prod(shape))).reshape(shape)
    if len(shape) > 1:
        return values * 0.25
    return values * 0.5 + (1.0 if name.endswith("weight") else 0.0)


def tokens(step, count, vocabulary):
    index = np.uint64((1000 + step) << 32) + np.arange(count, dtype=np.uint64)
    return (mix(index) % np.uint64(vocabulary)).astype(np.int64)


def sketch(values):
    bits = mix(np.uint64(0xFFFF << 32) + np.arange(values.size, dtype=np.uint64))
    out = np.empty(64)
    for k in range(64):
        plus = (bits >> np.uint64(k)) & np.uint64(1) == 1
        out[k] = values[plus].sum() - values[~plus].sum()
    return out


def transposed(name):
    """Weights of Conv1D are [in, out]; a checkpoint of ours has [out, in]. The goldens of other families have their own order."""
    return name.startswith("h.") and name.endswith("weight") and "ln_" not in name


def ours(name, tensor):
    array = tensor.detach().double().numpy()
    # A copy: clipping scales gradients in place.
    return (array.T if transposed(name) else array).copy()


def named(model):
    return [(n.removeprefix("transformer."), p) for n, p in model.named_parameters()]


def fill(parameters, dtype):
    """Gives parameters their initial values: the `n`th of the list has the key `n`."""
    with torch.no_grad():
        for key, (name, parameter) in enumerate(parameters):
            size = tuple(reversed(parameter.shape)) if transposed(name) else tuple(parameter.shape)
            values = torch.from_numpy(initial(key, name, size)).to(dtype)
            parameter.copy_(values.T if transposed(name) else values)


def measure(model, parameters, vocabulary, positions, sequences, steps):
    """The logits and gradients of the first batch, loss and norm of each step, and the weights after the last."""
    decayed = [p for _, p in parameters if p.dim() >= 2]
    others = [p for _, p in parameters if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    found, losses, norms = {}, [], []
    for step in range(steps):
        ids = tokens(step, sequences * (positions + 1), vocabulary).reshape(sequences, positions + 1)
        ids = torch.from_numpy(ids)
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, vocabulary), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            found["logits"] = logits.detach().double().numpy()
            found |= {f"gradient/{n}": ours(n, p.grad) for n, p in parameters}
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
    found["loss"], found["grad_norm"] = np.array(losses), np.array(norms)
    found |= {f"weight/{n}": ours(n, p) for n, p in parameters}
    return found


def run(shape, dtype):
    heads, width, layers, positions, vocabulary, sequences = shape
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_new",
        layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )
    model = GPT2LMHeadModel(config).to(dtype).train()
    fill(named(model), dtype)
    return measure(model, named(model), vocabulary, positions, sequences, STEPS)


def parts(found):
    """The query, key and value parts of a bias are quantities of their own: the gradient of the key part is exactly zero."""
    for name, values in found.items():
        if name.endswith("c_attn.bias"):
            for part, third in zip("qkv", np.split(values, 3)):
                yield f"{name}.{part}", third
        else:
            yield name, values


def write(name, exact, single, metadata):
    """Writes a golden: of each quantity the f64 result, and how far f32 lies from it."""
    golden = {}
    for quantity, values in exact.items():
        flat = values.reshape(-1)
        golden[quantity] = flat.copy() if flat.size <= WHOLE else sketch(flat)
        distance = np.linalg.norm(single[quantity].reshape(-1) - flat)
        golden[f"{quantity}/distance"] = np.array([distance, np.linalg.norm(flat)])
        print(f"{name} {quantity} {flat.size} relative {distance / np.linalg.norm(flat):.2e}")
    path = os.path.join(os.path.dirname(__file__), f"{name}.safetensors")
    save_file(golden, path, metadata=metadata)
    os.chmod(path, 0o644)


def main():
    torch.manual_seed(0)
    for name, shape in SHAPES.items():
        exact, single = dict(parts(run(shape, torch.float64))), dict(parts(run(shape, torch.float32)))
        keys = ("heads", "d_model", "layers", "context", "vocab_size", "batch")
        write(name, exact, single, {k: str(v) for k, v in zip(keys, shape)})


if __name__ == "__main__":
    main()
