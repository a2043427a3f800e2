"""Reading a configuration, and what a wrong one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldreg_kernels.trainer.config import (
    ConfigError,
    TrainConfig,
    load_config,
    make_config,
    parse_override,
    preset_names,
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"^epoch: no such setting, got 3; the nearest is epochs$"),
        ({"regularisers": [{"wieght": 0.1}]}, r"^regularisers.0.wieght: no such setting, got 0.1; .*0.weight$"),
        ({"regularisers": [{"name": "ldrag"}]}, r"^regularisers.0.name: .*'ldreg'.*got 'ldrag'"),
        ({"regularisers": [{"k": 1}]}, r"^regularisers.0.k: .*greater than or equal to 2, got 1"),
        ({"regularisers": [{"weight": "some"}]}, r"^regularisers.0.weight: must be a number, or a text such as"),
        ({"regularisers": [{"weight": -1}]}, r"^regularisers.0.weight: must be a number that is finite and not neg"),
        ({"regularisers": [{"weight": True}]}, r"^regularisers.0.weight: must be a number that is finite"),
        ({"method": {"name": "simclr", "temperature": 0}}, r"^method.temperature: .*greater than 0, got 0"),
        ({"method": {"temperature": 0}}, r"^method.temperature: .*greater than 0, got 0"),
        ({"method": "simsiam"}, r"^method.name: must be one of 'simclr', 'byol', 'mae', got 'simsiam'"),
        ({"method": 3}, r"^method: "),
        ({"method": {"name": ["byol"]}}, r"^method.name: must be one of"),
        ({"method": {"name": "byol", "temperature": 1}}, r"^method.temperature: no such setting, got 1"),
        ({"method": {"name": "byol", "projector": {"layers": 3}}}, r"^method: projector.layers .* no meaning for byol"),
        ({"method": "mae", "encoder": {"name": "conv"}}, r"^encoder.name must be a vit for mae, .* got conv"),
        ({"encoder": {"name": "conv", "stem": "small"}}, r"^encoder.stem: no such setting"),
        ({"encoder": {"name": "resnet19"}}, r"^encoder.name: must be one of .*'resnet18'.*got 'resnet19'"),
        ({"optimiser": {"lr": float("nan")}}, r"^optimiser.lr: .*finite"),
        ({"optimiser": {"name": "lars", "betas": [0.9, 0.9]}}, r"^optimiser: betas has no meaning for lars"),
        (
            {"regularisers": [{"form": "target"}]},
            r"^regularisers.0: target must be given exactly when form is 'target'",
        ),
        (
            {"regularisers": [{"name": "minlid", "form": "l2"}]},
            r"^regularisers.0: form has no meaning for minlid",
        ),
        (
            {"batch_size": 8, "regularisers": [{"k": 16}]},
            r"^regularisers.0.k must be at most 2 \* batch_size - 1 = 15",
        ),
        ({"method": "byol", "batch_size": 4, "regularisers": [{"k": 16}]}, r"at most 4 \* batch_size - 1 = 15"),
        ({"method": "mae", "batch_size": 16, "regularisers": [{"k": 16}]}, r"at most 1 \* batch_size - 1 = 15"),
        (
            {"precision": "fp16", "regularisers": [{"weight": "ratio:0.1"}]},
            r"regularisers.weight: a ratio needs precision no or bf16",
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
    (tmp_path / "c.json").write_text('{"epochs": 7, "regularisers": [{"weight": 0.5}]}')
    (tmp_path / "c.toml").write_text("epochs = 7\n[[regularisers]]\nweight = 0.5\n")
    config = load_config(tmp_path / "c.json")
    assert config.epochs == 7
    assert config.regularisers[0].weight == 0.5
    assert config == load_config(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.ini", "epochs = 7", "must be a .json, .toml, .yaml, .yml file"),
        ("c.yaml", "epochs: [", r"c.yaml: .*at line 1, column 10"),
        ("c.yaml", "seed: 1\na: b: c", r"c.yaml: .*at line 2, column 5"),
        ("c.yaml", "seed: \x01", r"c.yaml: .*special characters are not allowed"),
        ("c.yaml", "epochs: !!python/object/apply:os.system [ls]", r"^epochs: "),
        ("c.json", "{", r"c.json: .*line 1 column 2"),
        ("c.json", '{"seed": 1,\n "epochs": }', r"c.json: .*line 2 column 12"),
        ("c.toml", "epochs = x", r"c.toml: .*line 1, column 10"),
        ("c.json", "[1]", "expected an object of settings, got list"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / name)


def test_what_an_old_file_names_exists() -> None:
    values = {"method": "byol", "encoder": {"name": "resnet50"}, "data": {"dataset": "cifar10"}, "device": "cuda"}
    config = make_config(values)
    assert (config.method.name, config.encoder.name, config.data.dataset) == ("byol", "resnet50", "cifar10")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.json: No such file"):
        load_config(tmp_path / "absent.json")


def test_what_is_written_can_be_read_back(tmp_path: Path, tiny: TrainConfig) -> None:
    (tmp_path / "c.json").write_text(tiny.model_dump_json())
    assert load_config(tmp_path / "c.json") == tiny


def test_overrides_lie_over_the_file_and_leave_it_alone() -> None:
    values = {"regularisers": [{"k": 8}, {"name": "minlid"}]}
    config = make_config(values, {"regularisers.0.weight": 2.0, "regularisers.1.k": 4, "epochs": 3})
    first, second = config.regularisers
    assert (first.k, first.weight, second.name, second.k, config.epochs) == (8, 2.0, "minlid", 4, 3)
    assert values == {"regularisers": [{"k": 8}, {"name": "minlid"}]}
    with pytest.raises(ConfigError, match=r"regularisers.2.k: there is no regularisers.2; the list has 2 entries"):
        make_config(values, {"regularisers.2.k": 4})


def test_a_method_brings_its_defaults_and_what_is_said_lies_over_them() -> None:
    assert TrainConfig() == make_config({})
    for config in (make_config({"method": "mae"}), make_config({}, {"method.name": "mae"})):
        assert config.encoder.name == "vit-micro"
        assert config.optimiser.betas == (0.9, 0.95)
    said = make_config({"method": "mae", "encoder": {"name": "vit-tiny"}, "optimiser": {"lr": 0.5}})
    assert (said.encoder.name, said.optimiser.lr, said.optimiser.betas) == ("vit-tiny", 0.5, (0.9, 0.95))
    assert make_config({"encoder": {"name": "resnet18", "width": 8}}).encoder.width == 8


def test_another_name_drops_the_settings_of_the_old_one() -> None:
    mae = make_config({"method": "mae"})
    assert mae.derive({"encoder.name": "vit-tiny"}).encoder.patch_size is None
    assert mae.derive({"optimiser.name": "sgd"}).optimiser.momentum == 0.9  # and no betas
    byol = make_config({"method": {"name": "byol", "ema_momentum": 0.5}})
    assert byol.derive({"method.name": "simclr"}).method.name == "simclr"


def test_names_come_before_settings_in_whatever_order_they_were_typed() -> None:
    for overrides in (
        {"encoder.width": 8, "encoder.name": "resnet18"},
        {"encoder.name": "resnet18", "encoder.width": 8},
    ):
        assert make_config({}, overrides).encoder.width == 8
    with pytest.raises(ConfigError, match="momentum has no meaning for adamw"):
        make_config({}, {"optimiser.momentum": 0.5, "optimiser.name": "adamw"})


def test_a_preset_keeps_its_settings_for_another_network_of_the_kind() -> None:
    root = {"data": {"root": "/nowhere"}}
    resnet = make_config(root, {"encoder.name": "resnet18"}, preset="simclr-imagenet").encoder
    assert (resnet.stem, resnet.zero_init) == ("imagenet", True)
    vit = make_config(root, {"encoder.name": "vit-small"}, preset="simclr-vit-imagenet").encoder
    assert (vit.patch_size, vit.initialisation, vit.frozen_patch_embedding) == (16, "moco-v3", True)


def test_an_entry_of_the_list_lies_over_the_methods_own() -> None:
    assert make_config({"method": "mae", "regularisers": [{"k": 16}]}).regularisers[0].weight == 0.01
    mae = make_config({"method": "mae", "regularisers": []})
    assert mae.regularisers == ()
    assert mae.with_regulariser("ldreg").regularisers == make_config({"method": "mae"}).regularisers


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_written_down_whole(name: str) -> None:
    values = {"data": {"root": "/nowhere"}} if "imagenet" in name or "tuned" in name else {}
    config = make_config(values, preset=name)
    assert make_config(config.model_dump(mode="json")) == config


def test_presets_have_the_published_constants() -> None:
    tuned = make_config({"data": {"root": "/nowhere"}}, preset="simclr-tuned")
    projector = tuned.method.projector
    assert (tuned.method.temperature, projector.hidden_dim, projector.layers) == (0.15, 8192, 3)
    byol = make_config({"data": {"root": "/nowhere"}}, preset="byol-imagenet")
    assert byol.regularisers[0].weight == 2 * 0.005
    assert make_config({"data": {"root": "/nowhere"}}, preset="mae-imagenet").regularisers[0].weight == 5e-6
    with pytest.raises(ConfigError, match=r"preset: must be one of byol, .*got 'simclr-tunde'"):
        make_config({}, preset="simclr-tunde")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.5}, "temperature: no such setting any more, it is now method.temperature"),
        (
            {"projector": {"hidden_dim": 8}},
            r"^projector.hidden_dim: no .* any more, it is now method.projector.hidden_dim",
        ),
        ({"regulariser": {"k": 8}}, r"^regulariser.k: no such setting any more, it is now regularisers.0.k$"),
        ({"regularizer": {"wieght": 8}}, r"it is now regularisers.0.weight$"),
        ({"regulariser": "ldreg"}, r"it is now regularisers.0$"),
        ({"augmentation": {"shear": 1}}, "shear is now augmentation.strokes.shear"),
    ],
)
def test_old_names_say_the_new_ones(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(values)


def test_old_names_in_overrides_too() -> None:
    with pytest.raises(ConfigError, match=r"it is now method.temperature"):
        make_config({}, {"temperature": 0.5})
    with pytest.raises(ConfigError, match=r"regulariser.weight: .*it is now regularisers.0.weight"):
        make_config({}, {"regulariser.weight": 0.5})


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("regularisers.0.wieght", "regularisers.0.weight"),
        ("regularisers.0.estimater", "regularisers.0.estimator"),
        ("optimiser.weight_decy", "optimiser.weight_decay"),
        ("optimizer.warmup_epoch", "optimiser.warmup_epochs"),
        ("method.temprature", "method.temperature"),
        ("method.projector.hiden_dim", "method.projector.hidden_dim"),
        ("encoder.widht", "encoder.width"),
        ("data.synthetic.manifol", "data.synthetic.manifold"),
        ("augmentation.strokes.sheer", "augmentation.strokes.shear"),
        ("batchsize", "batch_size"),
        ("lr", "optimiser.lr"),  # right, in the wrong place
        ("weight", "regularisers.0.weight"),
    ],
)
def test_a_misspelt_setting_names_the_nearest(name: str, suggested: str) -> None:
    with pytest.raises(ConfigError, match=rf"no such setting, got 1; the nearest is {suggested}$"):
        make_config({}, {name: 1})


def test_every_setting_with_two_letters_swapped_is_found_again() -> None:
    def names(values: Any, prefix: str = "") -> list[str]:
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        return [
            found
            for name, value in pairs
            for found in (names(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"])
        ]

    for method in ("simclr", "byol", "mae"):
        for name in names(make_config({"method": method}).model_dump(mode="json")):
            section, _, leaf = name.rpartition(".")
            misspelt = f"{section}.{leaf[0]}{leaf[2:3]}{leaf[1:2]}{leaf[3:]}".removeprefix(".")
            if len(leaf) > 4 and misspelt != name:  # of lr and k little is left
                with pytest.raises(ConfigError, match=rf"; the nearest is {name}$"):
                    make_config({"method": method}, {misspelt: "x"})


def test_suggestions_are_of_the_chosen_method_and_encoder() -> None:
    with pytest.raises(ConfigError, match=r"method.temperature: no such setting, got 1; there are name, ema_momentum"):
        make_config({"method": "byol"}, {"method.temperature": 1})
    with pytest.raises(ConfigError, match=r"encoder.patchsize: no such setting, got 4; there are name, width$"):
        make_config({"encoder": {"patchsize": 4}})
    with pytest.raises(ConfigError, match=r"encoder.patchsize: no such setting, got 4; the nearest is encoder.patch_s"):
        make_config({"encoder": {"name": "vit-tiny", "patchsize": 4}})
    with pytest.raises(ConfigError, match=r"^data: is a section; its settings are dataset, root, .* got 'cifar10'$"):
        make_config({}, {"data": "cifar10"})


def test_the_american_spelling_is_taken() -> None:
    ours = {"regularisers.0.weight": 0.5, "optimiser.lr": 0.1, "augmentation.normalise": "imagenet"}
    theirs = {"regularizers.0.weight": 0.5, "optimizer.lr": 0.1, "augmentation.normalize": "imagenet"}
    assert make_config({}, theirs) == make_config({}, ours)
    mae = {"method": "mae", "encoder": {"initialization": "moco-v3"}, "regularizers": [{"k": 8}]}
    config = make_config(mae)
    assert (config.encoder.initialisation, config.regularisers[0].k) == ("moco-v3", 8)
    with pytest.raises(ConfigError, match=r"optimiser: is given in both spellings"):
        make_config({"optimizer": {"lr": 0.1}, "optimiser": {"name": "sgd"}})


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_yaml_means_what_it_says(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"c{suffix}"
    path.write_text(
        "epochs: 7\nprecision: no\nregularisers:\n  - weight: 1e-2\n    k: 8\n"
        "augmentation: {crop_scale: [0.5, 1], blur: true}\ndata: {train_images: null}  # all\n"
    )
    values = {
        "epochs": 7,
        "precision": "no",
        "regularisers": [{"weight": 0.01, "k": 8}],
        "augmentation": {"crop_scale": [0.5, 1], "blur": True},
    }
    assert load_config(path) == make_config(values)
    path.write_text("")
    assert load_config(path) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs=3", ("epochs", 3)),
        ("method.name=byol", ("method.name", "byol")),
        ("regularisers.0.weight=1e-2", ("regularisers.0.weight", 0.01)),
        ("regularisers.0.weight=ratio:0.05", ("regularisers.0.weight", "ratio:0.05")),
        ("augmentation.crop_scale=[0.5, 1]", ("augmentation.crop_scale", [0.5, 1])),
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
    assert json.loads(TrainConfig().model_dump_json())["method"]["name"] == "simclr"
