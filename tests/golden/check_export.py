"""Holds an exported model against transformers: the folder loads, and the logits that `gaufre eval` wrote for it are right.

    gaufre export RUN DIR
    gaufre eval --init DIR --data FILE --dump-logits OUT.safetensors
    python3 tests/golden/check_export.py DIR OUT.safetensors

The yardstick is PyTorch's own f32: our logits may lie four times as far from its f64 as that does, plus the rounding of one
store. Exit code 1 where they do not.
"""

import contextlib
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from make_families import Wide, widen


def logits(folder, tokens, seq_len, dtype):
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: names for kind, names in report.items() if names}
    assert not wrong, wrong
    wide = dtype is torch.float64
    model = (widen(model) if wide else model).eval()
    with torch.no_grad(), Wide() if wide else contextlib.nullcontext():
        parts = [model(window[None]).logits[0] for window in tokens.split(seq_len)]
    return torch.cat(parts).double()


def main(folder, dump):
    with safe_open(dump, "pt") as file:
        tokens, ours = file.get_tensor("tokens").long(), file.get_tensor("logits").double()
        seq_len = int(file.metadata()["seq_len"])
    exact = logits(folder, tokens, seq_len, torch.float64)
    single = logits(folder, tokens, seq_len, torch.float32)
    distance, yardstick = (ours - exact).norm().item(), (single - exact).norm().item()
    allowed = 4 * yardstick + 2**-24 * exact.norm().item()
    print(f"{tuple(ours.shape)} logits, norm {exact.norm():.4g}: ours {distance:.3e}, PyTorch f32 {yardstick:.3e} "
          f"from f64; {distance / allowed:.2f} of what is allowed")
    return 0 if distance <= allowed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
