"""What the CARLA simulator uses of the client package is there: of 0.9.16 as installed, of 0.9.15 by record.

The tests' stand-in for a server has nothing that the real classes lack, so what runs against it calls nothing else.
`carla_api_0.9.15.json` was recorded from the 0.9.15 package by running this file as a script with it.
"""

# What is imported after `importorskip` needs the client package.
# ruff: noqa: E402

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

carla = pytest.importorskip("carla", reason="needs CARLA's client package: pip install carla==0.9.16")

from tests import carla_server

PACKAGE = Path(__file__).parents[1] / "environment/carla_policy_environment/simulators/carla"
RECORD = Path(__file__).parent / "carla_api_0.9.15.json"
STAND_IN = {
    name: made
    for name, made in vars(carla_server).items()
    if inspect.isclass(made) and made.__module__ == carla_server.__name__
}
del STAND_IN["Server"]


def real(name: str) -> type:
    return getattr(carla.command if name == "Response" else carla, name)


@functools.cache
def public(made: type) -> set[str]:
    """Methods and the attributes that any method of the class or of its bases sets."""
    names = {name for name in dir(made) if not name.startswith("_")}
    for base in made.__mro__[:-1]:
        tree = ast.parse(inspect.getsource(base))
        names |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
            and not node.attr.startswith("_")
        }
    return names


def signatures(made: type, name: str) -> list[str]:
    """Of a method that Boost exposes: `tick( (World)arg1 [, (float)seconds=0.0]) -> int :`, one for each overload."""
    text = getattr(made, name).__doc__ or ""
    return [line.strip() for line in text.splitlines() if re.match(rf"{name}\(.*:$", line.strip())]


def parameters(signature: str) -> tuple[list[str], int]:
    """Names after `self`, and how many of them are required."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    required = inside.split("[", 1)[0]
    names = re.findall(r"\([\w:]+\)(\w+)", inside)
    return names[1:], len(re.findall(r"\([\w:]+\)(\w+)", required)) - 1


def used_of_module() -> set[str]:
    """`carla.X` and `carla.X.Y` in the source, whatever holds the module."""
    used = set()
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                chain = ast.unparse(node)
                if found := re.fullmatch(r"(?:self\.)?(?:_?session\.)?(?:_session\.)?carla\.([A-Za-z.]+)", chain):
                    used.add(found[1])
    return used


def recorded(package: ModuleType) -> dict[str, object]:
    """What is compared: of the stand-in's classes every public name with its signatures, and the module's names."""
    classes = {
        name: {
            attribute: signatures(real(name), attribute)
            for attribute in sorted(public(made))
            if hasattr(real(name), attribute)
        }
        for name, made in sorted(STAND_IN.items())
    }
    return {
        "version": package.Client("127.0.0.1", 2000).get_client_version(),
        "module": sorted(name for name in used_of_module() if _resolves(package, name)),
        "classes": classes,
        "weather": sorted(n for n in dir(package.WeatherParameters) if n[0].islower() and n != "numerator"),
    }


def _resolves(package: ModuleType, chain: str) -> bool:
    here: object = package
    for part in chain.split("."):
        if not hasattr(here, part):
            return False
        here = getattr(here, part)
    return True


def test_the_stand_in_has_nothing_that_the_real_classes_lack():
    missing = [f"{name}.{a}" for name, made in STAND_IN.items() for a in public(made) if not hasattr(real(name), a)]
    assert missing == []


@pytest.mark.parametrize("version", ["0.9.15", "0.9.16"])
def test_its_methods_take_what_the_real_ones_take(version):
    real_ones = json.loads(RECORD.read_text(encoding="utf-8")) if version == "0.9.15" else recorded(carla)
    wrong = [
        f"{name}.{attribute}{inspect.signature(ours)}: {theirs[attribute]}"
        for name, theirs in real_ones["classes"].items()
        for attribute in public(STAND_IN[name])
        if inspect.isfunction(ours := inspect.getattr_static(STAND_IN[name], attribute, None))
        and not any(fits(ours, parameters(line)) for line in theirs[attribute])
    ]
    assert wrong == []


def fits(ours: object, theirs: tuple[list[str], int]) -> bool:
    """Whether a method of the stand-in needs as many arguments as the real one, and names them alike."""
    (names, required), expected = theirs, list(inspect.signature(ours).parameters.values())[1:]
    return (
        sum(parameter.default is parameter.empty for parameter in expected) == required
        and len(expected) <= len(names)
        and all(b.startswith("arg") or a.name == b for a, b in zip(expected, names, strict=False))
    )


def test_what_the_code_names_of_the_module_is_there():
    used = used_of_module()
    assert {"VehicleControl", "command.ApplyTransform", "TrafficLightState.Red"} <= used
    assert [name for name in sorted(used) if not _resolves(carla, name)] == []


def test_the_weather_has_the_fields_that_a_snapshot_keeps():
    from carla_policy_environment.simulators.carla.snapshots import WEATHER_FIELDS

    assert sorted(WEATHER_FIELDS) == sorted(n for n in dir(carla.WeatherParameters) if n[0].islower())


def test_0_9_15_has_all_of_it():
    old, new = json.loads(RECORD.read_text(encoding="utf-8")), recorded(carla)
    assert old["version"].startswith("0.9.15")
    assert {name: sorted(those) for name, those in old["classes"].items()} == {
        name: sorted(those) for name, those in new["classes"].items()
    }
    assert (old["module"], old["weather"]) == (new["module"], new["weather"])


if __name__ == "__main__":
    RECORD.write_text(json.dumps(recorded(carla), indent=1) + "\n", encoding="utf-8")
    sys.exit(0)
