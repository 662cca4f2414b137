"""Schedulers of the diffusers library, in and out.

``from_diffusers`` reads any scheduler whose step is linear into a table, by probing it; ``as_diffusers`` puts the
interface of a scheduler around one of ours. docs/importing-schedulers.md tells the whole.
"""
