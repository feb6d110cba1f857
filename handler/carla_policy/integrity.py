"""Are the files of an unpacked version those that its build packed? Cheap: nothing of them is opened but the card."""

from __future__ import annotations

from pathlib import Path

from carla_policy.card import ARTIFACT_FILES, CARD_FILE, ModelCard, load_card
from carla_policy.digests import compare_digests, verify_directory


def verify_files(model_dir: Path) -> ModelCard:
    """The card of an unpacked archive, after every file was held against `digests.json` and the card."""
    digests = verify_directory(model_dir)
    card = load_card(model_dir / CARD_FILE)
    listed = {name: digest for name, digest in digests.items() if name in ARTIFACT_FILES}
    compare_digests(card.artifact_hashes, listed, listed_in=CARD_FILE)
    return card
