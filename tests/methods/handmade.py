"""What the hand-made samples are made with."""

from __future__ import annotations

from pathlib import Path

from upft.specs import ContentRef, ModelSpec, PromptSpec

WEIGHTS = Path(__file__).parent.parent.parent / "upft" / "toy" / "weights"
MODEL = ModelSpec(ContentRef("0" * 64, str(WEIGHTS)), False)
PROMPT = PromptSpec(None, "{question}")
RATIO = 0.5
"""Share of whole traces."""
