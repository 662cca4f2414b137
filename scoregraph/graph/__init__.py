"""What a sampling graph is: values, nodes, builder, text, JSON, rules; schedules, samplers, guidance."""

# Importing a family registers its members, so that the text and JSON forms find every spec by its name.
from scoregraph.graph import caches as caches
from scoregraph.graph import corrections as corrections
from scoregraph.graph import energies as energies
from scoregraph.graph import guidance as guidance
from scoregraph.graph import prediction as prediction
from scoregraph.graph import samplers as samplers
from scoregraph.graph import schedules as schedules
from scoregraph.graph import select as select
