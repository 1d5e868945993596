"""`firstlight checkpoint`: checkpoints on this machine, without a cluster or an API."""

from __future__ import annotations

import typer

from firstlight.cli import checkpoint_bench, checkpoint_convert, checkpoint_inspect, checkpoint_verify

app = typer.Typer(
    no_args_is_help=True,
    help="Make, look at, verify and measure checkpoints on this machine. Needs no cluster.",
    epilog="\n\n".join(
        (
            "From a folder of safetensors to the disk's own speed:",
            "firstlight checkpoint convert ./Qwen3-0.6B ./qwen.ckpt",
            "firstlight checkpoint inspect ./qwen.ckpt",
            "firstlight checkpoint verify ./qwen.ckpt",
            "firstlight checkpoint bench ./qwen.ckpt",
        )
    ),
)

for module in (checkpoint_convert, checkpoint_inspect, checkpoint_verify, checkpoint_bench):
    module.register(app)
