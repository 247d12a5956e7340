"""Base of the commands of ``fusion-pl data``, which read a table with the configuration of ``fusion-pl fit``."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from fusion_pl.cli.fusion_cli import FusionCLI
from fusion_pl.data.manifest import ManifestData
from fusion_pl.types import UserError


class DataCLI(FusionCLI):
    """Command line of ``fusion-pl fit`` that builds the data and the model's processors, but no trainer."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the command to those of ``fit``."""
        super().add_arguments_to_parser(parser)
        self.add_options(parser)

    def _set_seed(self) -> None:
        """Do nothing: training alone is random."""

    def instantiate_classes(self) -> None:
        """Build the data and the model, whose processors the data gets."""
        self.options = self.config.fit
        self.check_options()
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.datamodule.processors = self._get(self.config_init, "model").processors

    def _run_subcommand(self, subcommand: str) -> None:
        """Prepare the data and run the command."""
        del subcommand
        data: Any = self.datamodule
        if not isinstance(data, ManifestData):
            raise UserError(f"{type(data).__name__} has no table: this command needs one")
        data.prepare_data()
        self.run_command(data)

    @abstractmethod
    def add_options(self, parser: LightningArgumentParser) -> None:
        """Add the options of the command."""

    @abstractmethod
    def check_options(self) -> None:
        """Raise a ``UserError`` for options that cannot work, before anything is built."""

    @abstractmethod
    def run_command(self, data: ManifestData) -> None:
        """Run the command."""
