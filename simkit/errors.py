"""The exceptions that simkit raises for bad input.

Every message says what was expected, what was found and what to do. At the shell they become one line and a non-zero exit.
"""


class SimkitError(Exception):
    """Base of every error that simkit raises on purpose."""


class ConfigError(SimkitError, ValueError):
    """A recipe, flag or option is unknown or has an unusable value."""


class DataError(SimkitError, ValueError):
    """A data file or data set is missing, empty, malformed or inconsistent."""


class LabelError(DataError):
    """A label is missing, of a wrong shape or not finite."""


class GeometryError(SimkitError, ValueError):
    """A structure is unusable: coinciding atoms, a degenerate cell, coordinates that are not finite."""


class ElementError(SimkitError, ValueError):
    """A structure holds elements that the model does not know."""


class ModelFileError(SimkitError, ValueError):
    """A file is not a valid simkit model: truncated, pickled, of another format or inconsistent."""


class DeviceError(SimkitError, RuntimeError):
    """The requested device is not available."""


class MissingDependencyError(SimkitError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class OutputError(SimkitError, OSError):
    """An output file or folder cannot be written, or would be overwritten."""
