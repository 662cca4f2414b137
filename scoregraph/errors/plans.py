"""Plan files and the cache (SG5xx)."""

from __future__ import annotations

from scoregraph.errors.base import ScoregraphError


class PlanMissing(ScoregraphError):
    """No saved plan lies where one was asked for. A plan is a folder with ``plan.json`` in it, as
    ``scoregraph compile GRAPH -o FOLDER`` or ``plan.save(folder)`` writes it."""

    code = "SG501"
    title = "no plan there"
    message = "{folder} holds no plan.json"
    cure = "give the folder that 'scoregraph compile … -o FOLDER' wrote"


class PlanCorrupt(ScoregraphError):
    """A plan file was edited, cut short, or is not a plan. A plan is never repaired by guessing: compile it again."""

    code = "SG502"
    title = "broken plan"
    message = "{problem}"
    cure = "compile the graph again; a plan file is not meant to be edited"


class PlanVersion(ScoregraphError):
    """The plan was written by a version of scoregraph whose plan format differs from this one's."""

    code = "SG503"
    title = "wrong plan version"
    message = "the plan has format version {found}, this scoregraph reads version {expected}"
    cure = "compile the graph again with this version"


class CannotWrite(ScoregraphError):
    """A plan, a picture or an array could not be written where it was asked for: the folder is not writable, the disk
    is full, or a file stands where a folder is needed."""

    code = "SG504"
    title = "cannot write there"
    message = "{path}: {problem}"
    cure = "name another place, or make this one writable"
