"""Where a training step's time goes: torch's profiler over a few steps, operations by their own time.

    python -m benchmarks.trace [--device cpu] [--rows 15] [--steps 3] [--chrome FILE] [options of benchmarks.step]

On CUDA it also counts how often a step makes the host wait for the device (torch's own sync detector).
"""

import argparse
import warnings

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step import Setting


def count_waits(setting: Setting) -> dict[str, int]:
    """Source lines at which one step waits for the device, with how often."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            setting.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits: dict[str, int] = {}
    for warning in caught:
        if "synchroniz" in str(warning.message):
            place = f"{warning.filename}:{warning.lineno}"
            waits[place] = waits.get(place, 0) + 1
    return waits


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prior", default="embedded:digits")
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--real-batch", type=int, default=32)
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", default=None)
    parser.add_argument("--rows", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--chrome", default=None, help="also write the trace for chrome://tracing")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    setting = Setting(
        arguments.prior,
        arguments.num_steps,
        arguments.real_batch,
        arguments.images_per_class,
        device,
        bfloat16=arguments.precision == "bfloat16",
        channels_last=arguments.channels_last,
        compile=arguments.compile,
    )
    for _ in range(2):
        setting.step()  # finds the memory plan; compiles
    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as trace:
        for _ in range(arguments.steps):
            setting.step()
    order = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
    print(trace.key_averages().table(sort_by=order, row_limit=arguments.rows, max_name_column_width=60))
    if arguments.chrome:
        trace.export_chrome_trace(arguments.chrome)
    if on_cuda:
        waits = count_waits(setting)
        print(f"waits for the device in one step: {sum(waits.values())}")
        for place, count in waits.items():
            print(f"{count:5} x {place}")


if __name__ == "__main__":
    main()
