"""Experiments: one YAML file each, and the schema that knows their keys."""
