"""Plans as data: schema, text, files, and the draft that lowering fills."""
