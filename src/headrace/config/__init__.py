"""Every setting, declared once; and the only reader of the environment.

A section is a frozen dataclass; each of its fields is a setting, declared with `knob`. Command-line flags
(``cli.flags``), environment names (``HEADRACE_<NAME>``), keys of the configuration file (TOML, the same names),
``--help`` and ``headrace config explain`` are all made from the declarations. The command line wins over the
environment, that over the file, that over the default; every value remembers where it came from. A name nobody
declared, or a value out of its limits, is an error that says which setting and which source.

Each room is given its own section and nothing else.
"""

from headrace.config.knobs import Knob, duration, integer, knob, knobs, number, path, size, switch, text
from headrace.config.loading import ENV_PREFIX, Config, Setting, environment, load
from headrace.config.settings import (
    SECTIONS,
    BatchSettings,
    CacheSettings,
    MachineSettings,
    ModelSettings,
    ResidencySettings,
    ServerSettings,
    SpeculationSettings,
    WatermarkSettings,
)

__all__ = [
    "ENV_PREFIX",
    "SECTIONS",
    "BatchSettings",
    "CacheSettings",
    "Config",
    "Knob",
    "MachineSettings",
    "ModelSettings",
    "ResidencySettings",
    "ServerSettings",
    "Setting",
    "SpeculationSettings",
    "WatermarkSettings",
    "duration",
    "environment",
    "integer",
    "knob",
    "knobs",
    "load",
    "number",
    "path",
    "size",
    "switch",
    "text",
]
