"""Documents that mean more than they say: cards, profiles, manifests and the configuration of an archive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.attacks import Attack

CARD, CONFIG, MANIFEST = "model_card.yaml", "model-config.yaml", "MAR-INF/MANIFEST.json"


def doubled(levels: int) -> str:
    """Aliases of aliases of aliases."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels))]
    return "\n".join(lines) + "\n"


YAML = {
    "python tag": ("x: !!python/object/apply:os.system ['touch {marker}']\n", "tags are not allowed"),
    "tag of a name": ("x: !!python/name:os.system\n", "tags are not allowed"),
    "Java tag": ('x: !!javax.script.ScriptEngineManager ["http://127.0.0.1:9/"]\n', "tags are not allowed"),
    "time that is none": ("x: !!timestamp nonsense\n", "tags are not allowed"),
    "number that is none": ("x: !!int ''\n", "tags are not allowed"),
    "own tag": ("%TAG ! tag:yaml.org,2002:python/\n---\nx: !name:os.system\n", "YAML"),
    "alias bomb": (doubled(60), "aliases are not allowed"),
    "key twice": ("batch_size: 1\nbatch_size: 2\n", "appears twice"),
    "merged key": ("<<: {batch_size: 3}\nbatch_size: 1\n", "YAML"),
    "deep nesting": ("x: " + "[" * 50_000, "YAML"),
    "deep blocks": ("- " * 50_000, "YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "YAML"),
    "large": ("#" * (1 << 21), "larger than 1 MiB"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(5_000)), "not a key|Extra inputs"),
    "digits": ("x: " + "9" * 5_000 + "\n", "YAML"),
    "no text": ("x: \x00\n", "YAML"),
}
"""What no YAML file of ours may be, and what is said about it."""


def _append(file: str, text: str) -> Callable[[Path, Path], None]:
    def apply(directory: Path, marker: Path) -> None:
        path = directory / file
        path.write_text(path.read_text() + text.replace("{marker}", str(marker)))

    return apply


def _replace(file: str, old: str, new: str) -> Callable[[Path, Path], None]:
    def apply(directory: Path, _: Path) -> None:
        text = (directory / file).read_text()
        assert old in text
        (directory / file).write_text(text.replace(old, new))

    return apply


def _manifest(**changes: object) -> Callable[[Path, Path], None]:
    def apply(directory: Path, _: Path) -> None:
        content = json.loads((directory / MANIFEST).read_text())
        content["model"] |= changes
        (directory / MANIFEST).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    return apply


ATTACKS = [
    Attack("other handler", _manifest(handler="carla_policy/wire.py:os"), r"MANIFEST\.json: expected"),
    Attack("requirements in the manifest", _manifest(requirementsFile="requirements.txt"), r"MANIFEST\.json: expected"),
    Attack("other configuration", _manifest(configFile="model_card.yaml"), r"MANIFEST\.json: expected"),
    Attack("other version", _manifest(modelVersion="v9.9.9"), r"MANIFEST\.json: expected .*v9\.9\.9"),
    Attack("key twice", _replace(MANIFEST, '"handler"', '"handler": "x.py",\n    "handler"'), r"MANIFEST\.json: exp"),
    Attack("deep manifest", lambda d, _: _write(d / MANIFEST, "[" * 100_000), r"MANIFEST\.json: expected"),
    Attack("other runtime", _replace(MANIFEST, '"python"', '"LSP"'), r"MANIFEST\.json: expected"),
    Attack("torchrun", _append(CONFIG, "parallelType: pp\n"), r"model-config\.yaml: parallelType"),
    Attack("virtual environment", _append(CONFIG, "useVenv: true\n"), r"model-config\.yaml: useVenv"),
    Attack(
        "thousands of workers", _replace(CONFIG, "minWorkers: 1", "minWorkers: 1000000"), r"model-config\.yaml: min"
    ),
    Attack("text for a number", _replace(CONFIG, "batchSize: 2", "batchSize: true"), r"model-config\.yaml: batchSize"),
    Attack("no date", _replace(MANIFEST, "createdOn", "createdAt"), r"MANIFEST\.json: expected .*createdAt"),
    Attack("other archiver", _replace(MANIFEST, "0.12.0", "0.13.0"), r"MANIFEST\.json: expected .*0\.13\.0"),
    Attack(
        "manifest of 2 MiB", lambda d, _: _write(d / MANIFEST, " " * (2 << 20)), r"MANIFEST\.json: larger than 1 MiB"
    ),
    Attack(
        "more workers at least than at most",
        _replace(CONFIG, "minWorkers: 1", "minWorkers: 2"),
        r"model-config\.yaml: maxWorkers: expected at least minWorkers",
    ),
    Attack(
        "time-out of a year", _replace(CONFIG, "responseTimeout: 10", "responseTimeout: 31536000"), "responseTimeout"
    ),
    Attack("list for the settings", lambda d, _: _write(d / CONFIG, "- 1\n"), r"model-config\.yaml: Input should be"),
    Attack("digests of 2 MiB", lambda d, _: _write(d / "digests.json", " " * (2 << 20)), r"digests\.json: larger than"),
    Attack("setting twice", _append(CONFIG, "batchSize: 3\n"), r"model-config\.yaml: .*appears twice"),
    Attack("tag in the configuration", _append(CONFIG, YAML["Java tag"][0]), r"model-config\.yaml: .*tags"),
    Attack("card with a stranger", _append(CARD, "handler: os.system\n"), r"model_card\.yaml"),
    Attack("deep digests", lambda d, _: _write(d / "digests.json", "[" * 100_000), r"digests\.json: cannot be read"),
]
"""On an unpacked archive, which is packed again with digests that fit, unless it is about them."""
OF_DIGESTS = ("deep digests", "digests of 2 MiB")


def _write(path: Path, text: str) -> None:
    path.write_text(text)
