"""``fusion-pl data shard``, which writes a table and its files to shards."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from rich import get_console

from fusion_pl.cli.data_cli import DataCLI
from fusion_pl.cli.parsing import refuse_repeated_options
from fusion_pl.cli.run import ParserOnly, build_cli, build_parser
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.shard_data import ShardData
from fusion_pl.data.shard_writer import ShardWriter
from fusion_pl.files import check_output_folder
from fusion_pl.training.console import configure_logging
from fusion_pl.training.interrupt import StopSignals
from fusion_pl.types import UserError


class ShardCLI(DataCLI):
    """Command line of ``fusion-pl data shard``."""

    def add_options(self, parser: LightningArgumentParser) -> None:
        """Add the options of the writer."""
        parser.add_argument("--output", type=str, required=True, help="Folder of the shards.")
        parser.add_argument(
            "--shard_size", type=float, default=64.0, help="Size in MiB above which the next shard begins."
        )
        parser.add_argument(
            "--shuffle",
            type=bool,
            default=True,
            help="Whether to write the rows of each split in random order (by data.seed), so that the shards that are "
            "mixed in training are no classes or recording sessions; false: in the order of the table.",
        )

    def check_options(self) -> None:
        """Raise an error for options out of range."""
        size = self.options.shard_size
        check_output_folder(Path(self.options.output))
        if not 0 < size < float("inf"):
            raise UserError(f"--shard_size must be a number of MiB above 0, not {size}")

    def run_command(self, data: ManifestData) -> None:
        """Check the table and write the shards."""
        if isinstance(data, ShardData):
            raise UserError(f"{data.manifest} contains shards already: give the table from which they were written")
        data.setup("fit")
        size = int(self.options.shard_size * 2**20)
        self.manifest = ShardWriter(data, Path(self.options.output), size, self.options.shuffle).write()


class _ShardParser(ParserOnly, ShardCLI):
    pass


@functools.cache
def shard_parser() -> LightningArgumentParser:
    """Return the parser of ``fusion-pl data shard``."""
    return build_parser(_ShardParser)


@StopSignals().handle_signals()
def shard_command(arguments: list[str]) -> None:
    """Run ``fusion-pl data shard`` with the arguments that follow it."""
    refuse_repeated_options(arguments)
    configure_logging()
    sys.argv[1:] = ["fit", *arguments]
    cli = build_cli(ShardCLI)
    shards, folder = cli.manifest.shards, cli.options.output
    options = shlex.join(["--data", "fusion_pl.data.ShardData", "--data.shards", folder])
    number = f"{len(shards):,} shards" if len(shards) > 1 else "1 shard"
    size = cli.manifest.shard_bytes / 2**20
    for line in (f"{sum(shards.values()):,} rows in {number} of up to {size:.3g} MiB", f"Train with them: {options}"):
        get_console().print(line, highlight=False, markup=False, soft_wrap=True)
