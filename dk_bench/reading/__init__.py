"""How texts become values, in overrides, sweeps' arguments and YAML files. Begin with values.py."""
