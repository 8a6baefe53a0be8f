"""The golden of two layers of gpt3-13b at full width, from PyTorch: loss and every gradient, in f64 and in f32.

    python3 tests/golden/make_cut.py

writes tests/golden/gpt3-13b-cut.safetensors, which holds what make.py says, of 64 tokens and 0.9 G parameters that are
not updated: the gradients of the first batch and the losses of ten. (How far one loss in f32 lies from f64 is chance, and
no yardstick: it may be nothing.) It takes 12 GB of memory: gradients are sketched as they become known, and dropped, so what f32 misses by is
the norm of the difference of two sketches. Matrices are a quarter of make.py's noise, for a width so much larger.
"""

import os
import resource
import time

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from make import STEPS, WHOLE, mix, named, noise, tokens, transposed

# heads, width, layers, positions, vocabulary, sequences
SHAPE = 40, 5120, 2, 64, 50257, 1
# Elements that are made or summed at once: what they take beside stays in a cache.
BLOCK = 1 << 18


def fill(key, name, parameter):
    """make.py's `initial`, a block at a time, with a quarter of its noise in matrices."""
    matrix = parameter.dim() > 1
    scale, around = (0.0625, 0.0) if matrix else (0.5, 1.0 if "ln_" in name and name.endswith("weight") else 0.0)
    rows, cols = (parameter.T if transposed(name) else parameter).shape if matrix else (1, parameter.numel())
    step = max(1, BLOCK // cols)
    whole = noise_from(key, rows, cols, step)
    target = parameter.view(1, -1) if not matrix else parameter.T if transposed(name) else parameter
    for first, values in whole:
        target[first : first + len(values)] = torch.from_numpy(values * scale + around).to(parameter.dtype)


def noise_from(key, rows, cols, step):
    for first in range(0, rows, step):
        count = min(step, rows - first)
        index = np.uint64((key << 32) + first * cols) + np.arange(count * cols, dtype=np.uint64)
        yield first, ((mix(index) >> np.uint64(52)).astype(np.float64) / 4096 - 0.5).reshape(count, cols)


# Signs of the 64 sums, for each value of each byte of an element's bits.
SIGNS = np.array([[2.0 * (value >> bit & 1) - 1.0 for bit in range(8)] for value in range(256)])


class Sketch:
    """make.py's `sketch` and the norm, of values that come in blocks: added up by each byte of their bits first."""

    def __init__(self):
        self.count, self.squares, self.sums = 0, 0.0, np.zeros((8, 256))

    def add(self, values):
        bits = mix(np.uint64((0xFFFF << 32) + self.count) + np.arange(values.size, dtype=np.uint64))
        octets = bits.astype("<u8").view(np.uint8).reshape(-1, 8)
        for k in range(8):
            self.sums[k] += np.bincount(octets[:, k], weights=values, minlength=256)
        self.count += values.size
        self.squares += float(values @ values)

    def result(self):
        return (self.sums @ SIGNS).reshape(64), self.squares**0.5


def sketched(matrix):
    """Sketch and norm of a matrix, row by row."""
    out, step = Sketch(), max(1, BLOCK // matrix.shape[1])
    for rows in matrix.split(step):
        out.add(rows.double().contiguous().view(-1).numpy())
    return out.result()


def loss_of(model, step):
    _, _, _, positions, vocabulary, sequences = SHAPE
    ids = torch.from_numpy(tokens(step, sequences * (positions + 1), vocabulary).reshape(sequences, positions + 1))
    logits = model(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, vocabulary), ids[:, 1:].reshape(-1))


def losses(model):
    with torch.no_grad():
        values = np.array([loss_of(model, step).item() for step in range(STEPS)])
    return values, float(np.linalg.norm(values))


def built(dtype):
    heads, width, layers, positions, vocabulary, _ = SHAPE
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_new",
        layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )
    with torch.device("meta"):
        model = GPT2LMHeadModel(config).to(dtype)
    assert not list(model.buffers()), "what is not a parameter would stay undefined"
    # Tied before anything is allocated: the copies of a meta tensor are two.
    model.lm_head.weight = None
    model = model.to_empty(device="cpu").train()
    model.lm_head.weight = model.transformer.wte.weight
    with torch.no_grad():
        for key, (name, parameter) in enumerate(named(model)):
            fill(key, name, parameter)
    return model


def run(dtype):
    model, found = built(dtype), {}

    def take(name):
        def hook(parameter):
            gradient, parameter.grad = parameter.grad, None
            assert f"gradient/{name}" not in found and f"gradient/{name}.q" not in found, f"{name} twice"
            if name.endswith("c_attn.bias"):
                for part, third in zip("qkv", gradient.view(3, -1)):
                    found[f"gradient/{name}.{part}"] = sketched(third.view(1, -1))
            else:
                matrix = gradient if gradient.dim() > 1 else gradient.view(1, -1)
                found[f"gradient/{name}"] = sketched(matrix.T if transposed(name) else matrix)

        return hook

    for name, parameter in named(model):
        parameter.register_post_accumulate_grad_hook(take(name))
    loss_of(model, 0).backward()
    found["loss"] = losses(model)
    return found


def check():
    """What is done in blocks here is what make.py does at once."""
    from make import initial, sketch

    for name, shape in (("h.0.mlp.c_fc.weight", (7, 3)), ("wte.weight", (5, 4)), ("ln_f.weight", (6,))):
        parameter = torch.empty(shape, dtype=torch.float64)
        fill(9, name, parameter)
        size = shape[::-1] if transposed(name) else shape
        expected = initial(9, name, size) * (0.25 if len(shape) > 1 else 1.0)
        assert np.array_equal((parameter.T if transposed(name) else parameter).numpy(), expected), name
    values = noise(3, 3 * BLOCK).reshape(-1, 1024)
    sums, norm = sketched(torch.from_numpy(values))
    assert np.allclose(sums, sketch(values.reshape(-1)), rtol=1e-12, atol=1e-9), "sketch"
    assert np.isclose(norm, np.linalg.norm(values), rtol=1e-12), "norm"


def main():
    check()
    passes = {}
    for dtype in (torch.float64, torch.float32):
        start = time.monotonic()
        passes[dtype] = run(dtype)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{dtype}: {time.monotonic() - start:.0f} s, at most {peak:.1f} GB so far", flush=True)
    golden = {}
    for quantity, (values, norm) in passes[torch.float64].items():
        distance = np.linalg.norm(passes[torch.float32][quantity][0] - values)
        if values.size == WHOLE:
            distance /= 8
        golden[quantity], golden[f"{quantity}/distance"] = values, np.array([distance, norm])
        print(f"{quantity} {norm:.3e} relative {distance / norm:.2e}")
    path = os.path.join(os.path.dirname(__file__), "gpt3-13b-cut.safetensors")
    keys = ("heads", "d_model", "layers", "context", "vocab_size", "batch")
    save_file(golden, path, metadata={k: str(v) for k, v in zip(keys, SHAPE)})
    os.chmod(path, 0o644)


if __name__ == "__main__":
    main()
