"""Milliseconds per frame of EfficientNet-Lite0 on one thread, by way of running it; the ways take turns in one run.

    python benchmarks/bench_efficientnet.py [--rounds N] [--compile] [--json]

Random weights do: the arithmetic is the same. `--compile` adds torch.compile, which needs a C++ compiler.
"""

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from encoders_core.hardware_threads import configure_threads
from encoders_core.models.efficientnet_lite import EfficientNetLite, FoldedEfficientNetLite
from encoders_core.preprocessing import InputSpec, normalise

SPEC = InputSpec((224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
Way = Callable[[Tensor], Tensor]


def random_network() -> EfficientNetLite:
    torch.manual_seed(0)
    network = EfficientNetLite()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var = torch.full_like(module.weight, 2.0).detach()
    return network.eval()


def nchw(run: Way) -> Way:
    return lambda x: run(x.contiguous())


def ways(network: EfficientNetLite, *, compiled: bool) -> dict[str, Way]:
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    packed = FoldedEfficientNetLite(network, packed=True)
    packed.pack(SPEC.size_hw)
    headless = copy.deepcopy(network)
    headless.forward = headless.forward_features  # type: ignore[method-assign]  trace takes modules only
    frozen = torch.jit.freeze(torch.jit.trace(headless, torch.zeros(1, 3, 224, 224)))
    made: dict[str, Way] = {
        "eager NCHW": nchw(network.forward_features),
        "eager channels_last": last.forward_features,
        "jit.freeze NCHW": nchw(frozen),
        "jit.optimize_for_inference": nchw(torch.jit.optimize_for_inference(frozen)),
        "folded channels_last": FoldedEfficientNetLite(network),
        "folded, packed (ships)": packed,
    }
    if compiled:
        made["torch.compile"] = nchw(torch.compile(network.forward_features))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # torch.jit announces its retirement
    configure_threads()
    network, rows = random_network(), []
    with torch.inference_mode():
        made = ways(network, compiled=options.compile)
        for batch in (1, 2, 4):
            frames = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8)
            expected = network.forward_features(normalise(frames, SPEC))
            times: dict[str, list[float]] = {name: [] for name in made}
            firsts = {}
            for round_index in range(options.rounds + 2):
                for name, run in made.items():
                    started = time.perf_counter()
                    got = run(normalise(frames, SPEC))
                    elapsed = (time.perf_counter() - started) * 1000
                    if round_index == 0:
                        firsts[name] = (elapsed, float((got - expected).norm() / expected.norm()))
                    if round_index >= 2:
                        times[name].append(elapsed / batch)
            rows += [
                {
                    "way": name,
                    "batch": batch,
                    "ms_per_frame_p50": round(statistics.median(taken), 2),
                    "ms_per_frame_min": round(min(taken), 2),
                    "first_call_ms": round(firsts[name][0], 1),
                    "relative_error": float(f"{firsts[name][1]:.1e}"),
                }
                for name, taken in times.items()
            ]
    if options.json:
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}))
        return
    for row in rows:
        print("{way:28} batch {batch}  {ms_per_frame_p50:6.2f} ms  (best {ms_per_frame_min:6.2f})".format(**row))


if __name__ == "__main__":
    main()
