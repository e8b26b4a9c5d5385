"""What the tests of fine-tuning start from."""

SMALL = {"channels": 16, "layers": 2}
"""Options of the models."""
EMBEDDED = {"name": "embedded", "split": "train"}
"""The data of the first training."""
