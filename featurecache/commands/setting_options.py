"""Options and arguments that take their defaults from the settings (settings.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from featurecache.settings import Setting, read_settings

if TYPE_CHECKING:
    from click.types import OptionHelpExtra


class SettingOption(click.Option):
    """An option whose default is the setting of this key. Several backbones are not a default of
    an option that takes one."""

    def __init__(self, *arguments: Any, setting: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.key = setting

    def _setting(self, context: click.Context) -> Setting | None:
        setting = settings_of(context).get(self.key)
        return setting if setting and (self.multiple or len(setting.values) == 1) else None

    def get_default(self, ctx: click.Context, call: bool = True) -> Any:
        setting = self._setting(ctx)
        if setting is None:
            return super().get_default(ctx, call)
        return setting.values if self.multiple else setting.values[0]

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        extra = super().get_help_extra(ctx)
        if self.default == "" and extra.get("default") == '""':
            del extra["default"]  # the command says which backbones there are
        setting = self._setting(ctx)
        if setting is not None and "default" in extra:
            extra["default"] += f", from {setting.source}"
        return extra


def settings_of(context: click.Context) -> dict[str, Setting]:
    """The settings, read once per command."""
    meta = context.meta
    if _SETTINGS not in meta:
        meta[_SETTINGS] = read_settings()
    settings: dict[str, Setting] = meta[_SETTINGS]
    return settings


def setting(key: str) -> str | None:
    """The value of a setting in the command that is running."""
    chosen = settings_of(click.get_current_context()).get(key)
    return None if chosen is None else chosen.values[0]


def find_in_runs(context: click.Context, _: click.Parameter, value: Any) -> Any:
    """The callback of an argument that names runs: looks them up in the folder of the settings."""
    folder = settings_of(context).get("runs")
    if not value or folder is None or context.resilient_parsing:
        return value
    from featurecache.stages.looking.runs import find_run

    if isinstance(value, str):
        return find_run(value, folder.values[0])
    return tuple(find_run(run, folder.values[0]) for run in value)


def with_schedule_backbone(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a training without the backbone of the settings, if its schedule is a file:
    what the file names precedes a default. A shipped schedule takes that of the settings."""
    source = click.get_current_context().get_parameter_source("backbone")
    is_default = source is not ParameterSource.COMMANDLINE
    schedule = arguments["schedule"]
    if is_default and schedule is not None and Path(schedule).is_file():
        return {**arguments, "backbone": ()}
    return arguments


_SETTINGS = "featurecache.settings"  # the key in click's context
