"""Configs as files: complete, exact, frozen; old names and models of your own."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import yaml

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

import egno_jax
from egno_jax import families, training
from egno_jax.baselines import METHODS, BaselineConfig
from experiments import command_line, nbody, run_directory, settings
from experiments import run_records as records
from experiments.nbody import EXPERIMENT, DataConfig, NBodyConfig
from experiments.run_records import EXPERIMENTS

CONFIGS = [(name, each) for name in EXPERIMENTS for each in settings.names(name)]
# The presets of version 0.1, of which baselines were made.
OF_0_1 = {
    "nbody": (("paper",), ("quick", "any-times", "original")),
    "mocap": (
        ("run", "run-plain", "walk", "walk-plain"),
        ("run-original", "walk-uniform", "walk-dense", "quick"),
    ),
    "md17": (("quick", "quick-plain", "paper"), ("original",)),
    "protein": (("transition",), ("equilibrium", "quick")),
}


def config(experiment, name):
    return EXPERIMENTS[experiment].config(name)[0]


def test_every_config_is_small_described_and_another():
    for experiment in EXPERIMENTS.values():
        free, found = experiment.varied, {}
        for name in settings.names(experiment.name):
            made, description = experiment.config(name)
            assert made.preset == name and description.endswith("."), name
            assert len(experiment.path(name).read_text().splitlines()) <= 30, name
            key = json.dumps(settings.compared(made, free=free))
            assert key not in found, (name, found[key])
            found[key] = name
        assert {*experiment.presets} <= {*found.values()}


def test_files_hold_only_what_differs_from_the_defaults(tmp_path):
    for experiment, name in CONFIGS:
        default = EXPERIMENTS[experiment].default
        made, description = EXPERIMENTS[experiment].config(name)
        settings.write(tmp_path / f"{name}.yaml", made, default, description)
        own = (tmp_path / f"{name}.yaml").read_text()
        assert own == EXPERIMENTS[experiment].path(name).read_text(), name
        assert settings.read(tmp_path / f"{name}.yaml", default) == (made, description)


def test_every_config_survives_the_file_of_a_run(tmp_path):
    for experiment, name in CONFIGS:
        made = config(experiment, name)
        record = {"settings": settings.plain(made), "made_with": [{}]}
        run_directory.write_json(tmp_path / run_directory.CONFIG, record)
        assert run_directory.read_config(tmp_path, type(made)) == made
    folder = "data_dir" if hasattr(made.data, "data_dir") else "cache_dir"
    moved = dataclasses.replace(made, data=dataclasses.replace(made.data, **{folder: tmp_path}))
    run_directory.check_settings(tmp_path, moved)  # the data may be in another folder


def test_defaults_that_published_configs_rely_on_are_never_changed():
    frozen = yaml.safe_load((settings.CONFIGS / "defaults.yaml").read_text())
    assert frozen.keys() == EXPERIMENTS.keys()
    for name, tree in frozen.items():
        today = settings.compared(EXPERIMENTS[name].default)
        for key, value in settings.flatten(tree):
            assert today.get(key, value) == value, (name, key)


def test_a_published_config_that_was_edited_is_found(tmp_path):
    line = next(
        line
        for line in records.RESULTS.read_text().splitlines()
        if json.loads(line)["config"] == "paper"
    )
    (tmp_path / "results.jsonl").write_text(f"{line}\n")
    copy = tmp_path / "nbody" / "paper.yaml"
    copy.parent.mkdir()
    text = EXPERIMENT.path("paper").read_text()
    copy.write_text(text.replace("description: The", "description: Our"))
    (row,) = records.load(tmp_path / "results.jsonl", [tmp_path])
    assert row.settings == config("nbody", "paper")
    copy.write_text(text.replace("batch_size: 50", "batch_size: 51"))
    with pytest.raises(ValueError, match=r"paper\.yaml was edited; restore it"):
        records.load(tmp_path / "results.jsonl", [tmp_path])


@pytest.mark.parametrize("experiment", OF_0_1)
def test_presets_of_version_0_1_keep_working(experiment):
    compared, others = OF_0_1[experiment]
    for name in (*compared, *others, *(f"{c}-{method}" for c in compared for method in METHODS)):
        if "plain" in name:
            with pytest.warns(DeprecationWarning, match=f"preset '{name}' is deprecated"):
                made = config(experiment, name)
            assert "plain" not in made.preset
        else:
            assert config(experiment, name).preset == name


@pytest.mark.parametrize(
    ("experiment", "name", "num_times"),
    [
        ("nbody", "paper", 5),
        ("mocap", "run", 5),
        ("mocap", "walk-6x128", 5),
        ("md17", "paper", 8),
        ("protein", "transition", 4),
    ],
)
def test_a_baseline_has_the_data_and_the_training_of_its_config(experiment, name, num_times):
    ours = config(experiment, name)
    for method in METHODS:
        other = config(experiment, f"{name}-{method}")
        assert (other.data, other.training) == (ours.data, ours.training)
        assert isinstance(other.model, BaselineConfig) and other.model.method == method
        assert other.model.hidden_dim == ours.model.hidden_dim
        # EGNN is compared as it was published; EGNO without convolutions is ours otherwise.
        is_ours = method == "egno-no-conv"
        assert other.model.mean_field == (ours.model.mean_field and is_ours)
    assert config(experiment, f"{name}-egnn-s").model.num_layers >= num_times


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(egno_jax.EGNOConfig):
    """Has no field of its own that would distinguish it from EGNO's."""


@pytest.fixture
def registered(monkeypatch):
    kinds = families._FAMILIES
    monkeypatch.setitem(kinds, OwnConfig, kinds[egno_jax.EGNOConfig])


def test_a_model_of_your_own_is_named_in_the_file(tmp_path, registered):
    made = NBodyConfig(preset="mine", model=OwnConfig(hidden_dim=8))
    settings.write(tmp_path / "mine.yaml", made, NBodyConfig(), "Mine.")
    assert "class: " in (tmp_path / "mine.yaml").read_text()
    assert settings.read(tmp_path / "mine.yaml", NBodyConfig())[0] == made


def test_the_class_of_a_model_of_your_own_survives_the_file_of_a_run(tmp_path, monkeypatch):
    made = NBodyConfig(model=OwnConfig())
    run_directory.start(tmp_path, made, "command")
    with pytest.raises(ValueError, match=r"OwnConfig', which is not registered; import it first"):
        run_directory.read_config(tmp_path, NBodyConfig)
    kinds = families._FAMILIES
    monkeypatch.setitem(kinds, OwnConfig, kinds[egno_jax.EGNOConfig])
    assert type(run_directory.read_config(tmp_path, NBodyConfig).model) is OwnConfig
    record = json.loads((tmp_path / run_directory.CONFIG).read_text())
    del record["model_class"]
    run_directory.write_json(tmp_path / run_directory.CONFIG, record)
    assert type(run_directory.read_config(tmp_path, NBodyConfig).model) is egno_jax.EGNOConfig


def test_a_run_of_version_0_1_can_be_read(tmp_path):
    """Its preset has another name today, and fields that are newer are missing."""
    tree = settings.plain(config("mocap", "walk-6x128-egnn"))
    tree["preset"] = "walk-plain-egnn"
    del tree["model"]["velocity_scale"], tree["training"]["noise"]
    (tmp_path / "config.json").write_text(json.dumps({"settings": tree, "made_with": [{}]}))
    found = run_directory.read_config(tmp_path, type(config("mocap", "walk")))
    assert dataclasses.replace(found, preset="walk-6x128-egnn") == config(
        "mocap", "walk-6x128-egnn"
    )
    run_directory.check_settings(tmp_path, config("mocap", "walk-6x128-egnn"))


def test_a_velocity_weight_that_is_set_on_the_model_belongs_to_the_training(tmp_path):
    old = NBodyConfig(model=egno_jax.EGNOConfig(velocity_weight=0.1))
    new = NBodyConfig(training=training.TrainingConfig(velocity_weight=0.1))
    run_directory.start(tmp_path, old, "command")
    for made in (old, new):
        run_directory.check_settings(tmp_path, made)
    with pytest.raises(ValueError, match=r"training\.velocity_weight: got 0\.0"):
        run_directory.check_settings(tmp_path, NBodyConfig())
    assert settings.compared(old) == settings.compared(new) != settings.compared(NBodyConfig())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("description: A.\ntraining: {ema_decay: true}", "TrainingConfig.ema_decay: got True"),
        ("description: A.\ntraining: {ema_decay: much}", "TrainingConfig.ema_decay: got 'much'"),
        (
            f"description: A.\ntraining: {{ema_decay: {10**400}}}",
            "TrainingConfig.ema_decay: got 1000",
        ),
        ("model: {}", "KeyError('description')"),
        ("description: A.\nmodel: 5", "got 5, expected its fields"),
        ("description: A.\nmodel: {depth: 3}", "EGNOConfig.depth: got 3, expected one of"),
        ("description: A.\ndata: {num_train: 0}", "DataConfig.num_train: got 0, expected 1 to"),
        ("description: A.\nmodel: {class: 'a:B'}", "'a:B', which is not registered"),
    ],
)
def test_files_that_are_wrong_are_refused_with_their_name(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml: ") as error:
        settings.read(tmp_path / "mine.yaml", NBodyConfig())
    assert message in str(error.value)


def test_any_field_is_set_on_top_of_a_config(tmp_path):
    words = (
        "--model.hidden-dim 32 --training.optimizer.learning-rate 1e-3 "
        "--data.target-frames 31 35 --data.time-reversal --model.dtype bfloat16 --out here"
    ).split()
    options, made = command_line.parse(EXPERIMENT, ["--preset", "original", *words])
    original = config("nbody", "original")
    optimizer = dataclasses.replace(original.training.optimizer, learning_rate=1e-3)
    expected = dataclasses.replace(
        original,
        model=dataclasses.replace(original.model, hidden_dim=32, dtype="bfloat16"),
        data=DataConfig(target_frames=(31, 35), time_reversal=True),
        training=dataclasses.replace(original.training, optimizer=optimizer),
    )
    assert made == expected and str(options.out) == "here"
    mine = tmp_path / "mine.yaml"
    mine.write_text(EXPERIMENT.path("original").read_text())
    _, from_file = command_line.parse(EXPERIMENT, ["--config", str(mine), *words])
    assert from_file == dataclasses.replace(expected, preset="mine")
    assert command_line.parse(EXPERIMENT, [])[1] == config("nbody", "quick")
    egnn = command_line.parse(EXPERIMENT, ["--preset", "paper-egnn", "--model.num-layers", "2"])[1]
    assert egnn.model == dataclasses.replace(config("nbody", "paper-egnn").model, num_layers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, old = command_line.parse(EXPERIMENTS["mocap"], ["--preset", "run-plain-mpnn"])
    assert old == config("mocap", "run-6x128-mpnn")
    assert nbody.task(DataConfig(num_train=20)) == "num_train=20"
