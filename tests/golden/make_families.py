"""Goldens of the families beside GPT-2, from PyTorch: transformers' own classes and five steps of torch.optim.AdamW, in f64
and in f32.

    python3 tests/golden/make_families.py [NAME ...]

writes tests/golden/NAME.safetensors for each model below, or for those named. It holds what make.py says, of tensors as they
are called and lie in a checkpoint of transformers, and in its metadata the config.json and the names of all tensors: which
of them is which of ours is for the crate to find. The `n`th name in order has the key `n` of make.py's formula.

transformers computes softmax, RMS norms and angles in f32 whatever the type of the model. For the f64 result `Wide` makes
f64 of all that; the frequencies of rotary positions stay those of f32, which models were trained with.
"""

import json
import os
import sys
import tempfile

import numpy as np
import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

import make

STEPS, SEQUENCES = 5, 2
NO_DROPOUT = {"attention_dropout": 0.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    # Of the waves of a head of 16 columns some are shorter, some longer, some between.
    "original_max_position_embeddings": 64,
}

MODELS = {
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=101, hidden_size=40, num_hidden_layers=2, num_attention_heads=5, intermediate_size=92,
        max_position_embeddings=19, rotary_pct=0.5, hidden_act="gelu", use_parallel_residual=True,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager", **NO_DROPOUT,
    )),
    "gpt-neox-serial": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192,
        max_position_embeddings=22, rotary_pct=0.25, hidden_act="gelu_fast", use_parallel_residual=False,
        attention_bias=False, tie_word_embeddings=True, layer_norm_eps=1e-6,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager", **NO_DROPOUT,
    )),
    "gpt-j": lambda: GPTJForCausalLM(GPTJConfig(
        vocab_size=97, n_embd=40, n_layer=2, n_head=5, n_positions=21, rotary_dim=6, activation_function="gelu_new",
        bos_token_id=None, eos_token_id=None, attn_implementation="eager",
    )),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(
        vocab_size=109, hidden_size=36, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        intermediate_size=56, max_position_embeddings=23, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager", **NO_DROPOUT,
    )),
    "mistral": lambda: MistralForCausalLM(MistralConfig(
        vocab_size=89, hidden_size=44, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=72, max_position_embeddings=25, sliding_window=7, rms_norm_eps=1e-5,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager", **NO_DROPOUT,
    )),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(
        vocab_size=107, hidden_size=36, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=64, max_position_embeddings=18, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, attn_implementation="eager", **NO_DROPOUT,
    )),
}


class Wide(TorchFunctionMode):
    """Whatever would become f32 becomes f64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        result = func(*args, **kwargs)
        assert not (isinstance(result, torch.Tensor) and result.dtype == torch.float32), f"f32 out of {func}"
        return result


def stored(name, config):
    """What a checkpoint calls a parameter: newer versions of transformers have another name in memory."""
    return name.replace("lm_head", "embed_out") if config.model_type == "gpt_neox" else name


def ordered(model):
    """The parameters in the order of their names in a checkpoint."""
    return sorted((stored(name, model.config), parameter) for name, parameter in model.named_parameters())


def checkpoint(model):
    """What save_pretrained says: the config.json, and the names of all tensors."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with open(os.path.join(folder, "config.json")) as file:
            config = json.dumps(json.load(file))
        with safe_open(os.path.join(folder, "model.safetensors"), "pt") as file:
            return config, sorted(file.keys())


def widen(model):
    """f64 of all."""
    return widen_buffers(model.double())


def widen_buffers(model):
    """f64 of what is no parameter: frequencies, and GPT-J's table of angles, of frequencies in f32."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.double() if buffer.is_floating_point() else buffer)
        if hasattr(module, "embed_positions"):
            inverse = 1.0 / (10000 ** (torch.arange(0, module.pos_embd_dim, 2, dtype=torch.int64) / module.pos_embd_dim))
            assert inverse.dtype == torch.float32
            angles = torch.arange(module.max_positions, dtype=torch.float64)[:, None] * inverse.double()
            table = torch.cat((angles.sin(), angles.cos()), dim=1)
            assert torch.allclose(table.float(), module.embed_positions.float(), atol=1e-5)
            module.embed_positions = table
    return model


def run(build, dtype):
    torch.manual_seed(0)
    model = build().train()
    config = model.config
    if dtype is torch.float64:
        model = widen(model)
    parameters = ordered(model)
    make.fill(parameters, dtype)
    sizes = config.vocab_size, config.max_position_embeddings, SEQUENCES, STEPS
    if dtype is torch.float64:
        with Wide():
            return dict(parts(make.measure(model, parameters, *sizes), config))
    return dict(parts(make.measure(model, parameters, *sizes), config))


def parts(found, config):
    """The parts of a bias of queries, keys and values, which lie head by head, are quantities of their own: the gradient of
    keys that are not turned is exactly zero."""
    for name, values in found.items():
        if name.endswith("query_key_value.bias"):
            size = config.hidden_size // config.num_attention_heads
            turned = int(size * config.rope_parameters["partial_rotary_factor"])
            heads = values.reshape(-1, 3, size)
            yield f"{name}.q", heads[:, 0].reshape(-1)
            yield f"{name}.k", heads[:, 1, turned:].reshape(-1)
            yield f"{name}.turned", heads[:, 1, :turned].reshape(-1)
            yield f"{name}.v", heads[:, 2].reshape(-1)
        else:
            yield name, values


def main(names):
    for name in names or MODELS:
        exact, single = run(MODELS[name], torch.float64), run(MODELS[name], torch.float32)
        config, tensors = checkpoint(MODELS[name]())
        assert tensors == [n for n, _ in ordered(MODELS[name]())], "named otherwise than a checkpoint"
        make.write(name, exact, single, {"config": config, "tensors": json.dumps(tensors), "batch": str(SEQUENCES)})


if __name__ == "__main__":
    main(sys.argv[1:])
