"""Mistakes on the command line (SG7xx)."""

from __future__ import annotations

from scoregraph.errors.base import ScoregraphError


class NoGraphThere(ScoregraphError):
    """The command line takes a graph from the gallery by name, from a Python file that assigns it to ``graph``, or
    from its text (.txt) or JSON (.json) form."""

    code = "SG701"
    title = "no graph there"
    message = "{path}: {problem}"
    cure = "give a name such as terrain, or a .py file that assigns a GraphBuilder to 'graph', or a .txt or .json form"


class BadSetting(ScoregraphError):
    """``--set`` gives an input its value: ``--set difficulty=60``, one per sample as ``--set difficulty=[10,90]``, or
    an array from a file as ``--set x=@start.npy``."""

    code = "SG702"
    title = "unreadable setting"
    message = "--set {text!r} is not NAME=NUMBER, NAME=[NUMBER, …] or NAME=@FILE.npy"
    cure = "for example --set difficulty=60"


class WrongFormat(ScoregraphError):
    """The ending of an output file says what is written: .png a picture, .npy one array, .npz all of them."""

    code = "SG703"
    title = "unknown file format"
    message = "{path} cannot be written"
    cure = "end the name in {known}"


class MissingExtra(ScoregraphError):
    """An optional package is needed for what was asked. What a plain installation leaves out comes as extras:
    ``scoregraph[torch]`` compiles graphs, ``scoregraph[terrain]`` also draws pictures of the terrain model."""

    code = "SG704"
    title = "missing package"
    message = "{package} is not installed"
    cure = "pip install 'scoregraph[{extra}]'"
