"""Running molecular dynamics and relaxations with any ASE calculator."""
