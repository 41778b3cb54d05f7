"""From a row to a `Datum`: sources, examples, preparation, and unusable rows."""
