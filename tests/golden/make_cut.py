"""Goldens of two layers of large models at full width, from PyTorch: loss and every gradient, in f64 and in f32.

    python3 tests/golden/make_cut.py gpt3-13b-cut
    python3 tests/golden/make_cut.py gpt-neox-20b-cut

writes tests/golden/NAME.safetensors, which holds what make.py or make_families.py say, of 64 tokens and 0.9 or 1.5 G
parameters that are not updated: the gradients of the first batch and the losses of ten. (How far one loss in f32 lies from
f64 is chance, and no yardstick: it may be nothing.) It takes 12 GB of memory: gradients are sketched as they become known,
and dropped, so what f32 misses by is the norm of the difference of two sketches. Where 12 GB would not hold the weights in
f64, they stay in f32, which holds their values, and become f64 a block at a time (`Lean`). Matrices are a quarter of make.py's
noise, for a width so much larger.
"""

import contextlib
import gc
import json
import os
import resource
import sys
import time

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

import make
import make_families
from make import STEPS, WHOLE, mix, noise, tokens, transposed

# Elements that are made or summed at once: what they take beside stays in a cache.
BLOCK = 1 << 18
POSITIONS, SEQUENCES = 64, 1


class Gpt3:
    """Two layers of gpt3-13b."""

    lean = False
    shape = 40, 5120, 2, POSITIONS, 50257, SEQUENCES

    def empty(self):
        heads, width, layers, positions, vocabulary, _ = self.shape
        return GPT2LMHeadModel(GPT2Config(
            vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_new",
            layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
        ))

    def allocate(self, model):
        assert not list(model.buffers()), "what is not a parameter would stay undefined"
        # Tied before anything is allocated: the copies of a meta tensor are two.
        model.lm_head.weight = None
        model = model.to_empty(device="cpu")
        model.lm_head.weight = model.transformer.wte.weight
        return model

    def named(self, model):
        return make.named(model)

    def parts(self, found, _model):
        return make.parts(found)

    def metadata(self, _model):
        keys = ("heads", "d_model", "layers", "context", "vocab_size", "batch")
        return {k: str(v) for k, v in zip(keys, self.shape)}


class NeoX:
    """Two layers of gpt-neox-20b, or of such a model of another size."""

    def __init__(self, vocabulary=50432, width=6144, heads=64, lean=True):
        self.vocabulary, self.width, self.heads, self.lean = vocabulary, width, heads, lean

    def empty(self):
        return GPTNeoXForCausalLM(GPTNeoXConfig(
            vocab_size=self.vocabulary, hidden_size=self.width, num_hidden_layers=2, num_attention_heads=self.heads,
            intermediate_size=4 * self.width, max_position_embeddings=POSITIONS, rotary_pct=0.25, hidden_act="gelu_fast",
            attention_dropout=0.0, bos_token_id=None, eos_token_id=None, attn_implementation="eager",
        ))

    def allocate(self, model):
        model = model.to_empty(device="cpu")
        model.gpt_neox.rotary_emb = GPTNeoXRotaryEmbedding(model.config)
        return model

    def named(self, model):
        return make_families.ordered(model)

    def parts(self, found, model):
        return make_families.parts(found, model.config)

    def metadata(self, model):
        names = json.dumps([name for name, _ in self.named(model)])
        return {"config": model.config.to_json_string(), "tensors": names, "batch": str(SEQUENCES)}


CUTS = {"gpt3-13b-cut": Gpt3(), "gpt-neox-20b-cut": NeoX()}


def fill(key, name, parameter):
    """make.py's `initial`, a block at a time, with a quarter of its noise in matrices."""
    matrix = parameter.dim() > 1
    scale, around = (0.0625, 0.0) if matrix else (0.5, 1.0 if name.endswith("weight") else 0.0)
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


class LeanLinear(torch.autograd.Function):
    """`x W^T` in f64 of a weight in f32; `take` gets sketch and norm of the gradient of the weight, which is never whole."""

    @staticmethod
    def forward(ctx, x, weight, take):
        ctx.save_for_backward(x)
        ctx.weight, ctx.take = weight, take
        return torch.cat([x @ rows.double().T for rows in weight.split(1024)], dim=-1)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dx, out = torch.zeros_like(x), Sketch()
        flat = x.reshape(-1, x.shape[-1])
        for rows, part in zip(ctx.weight.split(1024), dy.split(1024, dim=-1)):
            dx += part @ rows.double()
            for some in part.reshape(flat.shape[0], -1).T.split(max(1, BLOCK // flat.shape[1])):
                out.add((some @ flat).contiguous().view(-1).numpy())
        ctx.take(out.result())
        return dx, None, None


class LeanEmbedding(torch.autograd.Function):
    """Rows of a table in f32, an array, as f64."""

    @staticmethod
    def forward(ctx, ids, table, take, _differentiable):
        ctx.ids, ctx.shape, ctx.take = ids.reshape(-1), table.shape, take
        return torch.from_numpy(table[ids.numpy()].astype(np.float64))

    @staticmethod
    def backward(ctx, dy):
        rows, out = {}, Sketch()
        for token, row in zip(ctx.ids.tolist(), dy.reshape(-1, ctx.shape[1]).numpy()):
            rows[token] = rows.get(token, 0.0) + row
        for token in sorted(rows):
            # Rows of no token are zero: they add nothing.
            out.count = token * ctx.shape[1]
            out.add(rows[token])
        ctx.take(out.result())
        return None, None, None, torch.zeros(())


def widen(model, take):
    """f64 in all parameters but the matrices, which become so as they are used; `take(parameter)` gets their gradients."""
    differentiable = torch.zeros((), requires_grad=True, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() == 1)
        if parameter.dim() == 1:
            parameter.data = parameter.data.double()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            def forward(x, module=module):
                y = LeanLinear.apply(x, module.weight, take(module.weight))
                return y if module.bias is None else y + module.bias
            module.forward = forward
        elif isinstance(module, torch.nn.Embedding):
            table = module.weight.detach().numpy()
            module.forward = lambda ids, table=table, module=module: LeanEmbedding.apply(
                ids, table, take(module.weight), differentiable
            )


def losses_of(model, steps):
    """The loss of each step's batch, the batches side by side."""
    vocabulary, count = model.config.vocab_size, SEQUENCES * (POSITIONS + 1)
    ids = np.concatenate([tokens(step, count, vocabulary).reshape(SEQUENCES, POSITIONS + 1) for step in steps])
    ids = torch.from_numpy(ids)
    logits = model(ids[:, :-1]).logits
    batches = zip(logits.split(SEQUENCES), ids[:, 1:].split(SEQUENCES))
    return [torch.nn.functional.cross_entropy(x.reshape(-1, vocabulary), y.reshape(-1)) for x, y in batches]


def losses(model):
    with torch.no_grad():
        values = np.array([loss.item() for loss in losses_of(model, range(STEPS))])
    return values, float(np.linalg.norm(values))


def run(cut, dtype):
    lean = cut.lean and dtype is torch.float64
    with torch.device("meta"):
        model = cut.empty().to(torch.float32 if lean else dtype)
    model, found = cut.allocate(model).train(), {}
    with torch.no_grad():
        for key, (name, parameter) in enumerate(cut.named(model)):
            fill(key, name, parameter)
    names = {id(parameter): name for name, parameter in cut.named(model)}

    def keep(name, result):
        assert name not in found, f"{name} twice"
        found[name] = result

    def hook(parameter):
        gradient, parameter.grad = parameter.grad, None
        name = f"gradient/{names[id(parameter)]}"
        if gradient.dim() > 1:
            keep(name, sketched(gradient.T if transposed(names[id(parameter)]) else gradient))
        else:
            for part, values in cut.parts({name: gradient.double().numpy().copy()}, model):
                keep(part, sketched(torch.from_numpy(values).view(1, -1)))

    if dtype is torch.float64:
        make_families.widen_buffers(model)
    if lean:
        widen(model, lambda parameter: lambda result: keep(f"gradient/{names[id(parameter)]}", result))
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.register_post_accumulate_grad_hook(hook)
    with make_families.Wide() if dtype is torch.float64 else contextlib.nullcontext():
        losses_of(model, [0])[0].backward()
        found["loss"] = losses(model)
    return found, cut.metadata(model)


def check():
    """What is done in blocks here is what make.py does at once, and what is lean is what PyTorch does."""
    for name, shape in (("h.0.mlp.c_fc.weight", (7, 3)), ("wte.weight", (5, 4)), ("ln_f.weight", (6,))):
        parameter = torch.empty(shape, dtype=torch.float64)
        fill(9, name, parameter)
        size = shape[::-1] if transposed(name) else shape
        # Matrices are a quarter; gains and biases are as there.
        expected = make.initial(9, name, size) * (0.25 if len(shape) > 1 else 1.0)
        assert np.array_equal((parameter.T if transposed(name) else parameter).numpy(), expected), name
    values = noise(3, 3 * BLOCK).reshape(-1, 1024)
    sums, norm = sketched(torch.from_numpy(values))
    assert np.allclose(sums, make.sketch(values.reshape(-1)), rtol=1e-12, atol=1e-9), "sketch"
    assert np.isclose(norm, np.linalg.norm(values), rtol=1e-12), "norm"
    (lean, _), (whole, _) = (run(NeoX(211, 64, 4, lean), torch.float64) for lean in (True, False))
    assert lean.keys() == whole.keys()
    for name, (values, norm) in whole.items():
        # Some parts are zero, to the rounding of what they are parts of.
        near = 1e-9 * norm + 1e-15
        assert np.linalg.norm(lean[name][0] - values) <= 100 * near and abs(lean[name][1] - norm) <= near, name


def main(name):
    check()
    cut, passes, metadata = CUTS[name], {}, None
    for dtype in (torch.float64, torch.float32):
        start = time.monotonic()
        passes[dtype], metadata = run(cut, dtype)
        # A model whose forwards refer to it is a circle, and would stay beside the next.
        gc.collect()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{dtype}: {time.monotonic() - start:.0f} s, at most {peak:.1f} GB so far", flush=True)
    assert passes[torch.float64].keys() == passes[torch.float32].keys()
    golden = {}
    for quantity, (values, norm) in passes[torch.float64].items():
        distance = np.linalg.norm(passes[torch.float32][quantity][0] - values)
        if values.size == WHOLE:
            distance /= 8
        golden[quantity], golden[f"{quantity}/distance"] = values, np.array([distance, norm])
        print(f"{quantity} {norm:.3e} relative {distance / norm:.2e}")
    path = os.path.join(os.path.dirname(__file__), f"{name}.safetensors")
    save_file(golden, path, metadata=metadata)
    os.chmod(path, 0o644)


if __name__ == "__main__":
    main(*sys.argv[1:])
