"""Reading a configuration, and what a wrong one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldreg_kernels.trainer.config import ConfigError, TrainConfig, load_config, make_config, parse_override


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"^epoch: no such setting, got 3$"),
        ({"regulariser": {"wieght": 0.1}}, r"^regulariser.wieght: no such setting, got 0.1$"),
        ({"regulariser": {"name": "ldrag"}}, r"^regulariser.name: .*'ldreg'.*got 'ldrag'"),
        ({"regulariser": {"k": 1}}, r"^regulariser.k: .*greater than or equal to 2, got 1"),
        ({"temperature": 0}, r"^temperature: .*greater than 0, got 0"),
        ({"optimiser": {"lr": float("nan")}}, r"^optimiser.lr: .*finite"),
        (
            {"regulariser": {"form": "target"}},
            r"^regulariser: target must be given exactly when form is 'target'",
        ),
        ({"regulariser": {"name": "minlid", "form": "l2"}}, r"^regulariser: form has no meaning for minlid"),
        ({"augmentation": {"scale": [1.2, 0.8]}}, r"^augmentation: scale must be 0 < low <= high"),
        (
            {"batch_size": 8, "regulariser": {"k": 16}},
            r"^regulariser.k must be at most 2 \* batch_size - 1 = 15",
        ),
    ],
)
def test_errors_name_the_field_and_what_came(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(values)


def test_every_wrong_field_has_its_line() -> None:
    with pytest.raises(ConfigError) as error:
        make_config({"seed": -1, "optimiser": {"lr": "fast"}})
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["seed", "optimiser.lr"]


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"epochs": 7, "regulariser": {"weight": 0.5}}')
    (tmp_path / "c.toml").write_text("epochs = 7\n[regulariser]\nweight = 0.5\n")
    config = load_config(tmp_path / "c.json")
    assert config.epochs == 7
    assert config.regulariser.weight == 0.5
    assert config == load_config(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "epochs: 7", "must be a .json or .toml file"),
        ("c.json", "{", r"c.json: .*line 1"),
        ("c.toml", "epochs = x", r"c.toml: .*line 1"),
        ("c.json", "[1]", "expected an object of settings, got list"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.json: No such file"):
        load_config(tmp_path / "absent.json")


def test_what_is_written_can_be_read_back(tmp_path: Path, tiny: TrainConfig) -> None:
    (tmp_path / "c.json").write_text(tiny.model_dump_json())
    assert load_config(tmp_path / "c.json") == tiny


def test_overrides_lie_over_the_file_and_leave_it_alone() -> None:
    values = {"regulariser": {"k": 8}}
    config = make_config(values, {"regulariser.weight": 2.0, "epochs": 3})
    assert (config.regulariser.k, config.regulariser.weight, config.epochs) == (8, 2.0, 3)
    assert values == {"regulariser": {"k": 8}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs=3", ("epochs", 3)),
        ("regulariser.name=none", ("regulariser.name", "none")),
        ("regulariser.weight=1e-2", ("regulariser.weight", 0.01)),
        ("augmentation.scale=[0.5, 1.5]", ("augmentation.scale", [0.5, 1.5])),
    ],
)
def test_override_syntax(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_override_without_a_name_or_value(text: str) -> None:
    with pytest.raises(ConfigError, match="must look like"):
        parse_override(text)


def test_override_into_something_that_is_no_section() -> None:
    with pytest.raises(ConfigError, match=r"epochs.more: epochs is not a section"):
        make_config({"epochs": 3}, {"epochs.more": 1})


def test_schema_is_plain_data() -> None:
    assert json.loads(TrainConfig().model_dump_json())["method"] == "simclr"
