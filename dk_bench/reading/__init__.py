"""How texts become values: of overrides, of sweeps' arguments, and of YAML files."""
