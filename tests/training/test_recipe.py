"""Recipes: defaults, bases, overrides, and every fault at once."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from support.documents import page

from ccf_plugin.errors import InputError
from ccf_plugin.threat import ThreatModel
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import describe_recipe, load_recipe, shipped_recipes
from ccf_plugin.training.recipe_notes import idle, unreached

MINIMAL = '[model]\nname = "narrow_preact_resnet18"\n[data]\nname = "digits"\n'


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_loads_and_opens_with_its_story(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    text = shipped_recipes()[name].read_text()
    assert f"ccf train recipes/{name}.toml" in text.split("# Command:", 1)[1].splitlines()[0]
    for word in ("# Source:", "# Published:", "# Measured:"):
        assert word in text
    assert ("# Precision:" in text) == (recipe.precision == "auto")
    what, source = describe_recipe(shipped_recipes()[name])
    assert 20 < len(what) < 120
    assert 5 < len(source) < 100


def test_the_source_is_cut_to_its_first_clause() -> None:
    shipped = shipped_recipes()
    assert describe_recipe(shipped["preact_linf_awp"])[1] == "Wu et al. 2020"
    assert describe_recipe(shipped["preact_linf"])[1] == "the paper, Sections 3.1-3.2 and Appendix B, Table 2"
    assert describe_recipe(shipped["digits"])[0].endswith("digits, under a minute on two CPU cores")


def test_preact_linf_states_the_papers_table_2() -> None:
    recipe = load_recipe("preact_linf")
    optim, threat, evaluation = recipe.optim, recipe.training_threat(), recipe.evaluation_threat()
    assert (optim.epochs, optim.momentum, optim.batch_size, optim.weight_decay) == (200, 0.9, 128, 5e-4)
    assert (optim.lr, optim.decay_epochs, optim.decay_rate) == (0.1, [100, 150], 0.1)
    assert (threat.norm, threat.eps, threat.step_size, threat.steps) == ("Linf", 8 / 255, 2 / 255, 10)
    assert (evaluation.eps, evaluation.step_size, evaluation.steps) == (8 / 255, 2 / 255, 20)


def test_a_recipe_read_by_path_equals_the_one_by_name() -> None:
    assert load_recipe(str(shipped_recipes()["digits"])) == load_recipe("digits")


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("cifar_small", ["attack.eps=2/255"])
    (tmp_path / "copy.toml").write_text(recipe.as_toml())
    assert load_recipe(str(tmp_path / "copy.toml")) == recipe


def test_base_gives_what_a_recipe_does_not_say() -> None:
    full, small = load_recipe("preact_linf"), load_recipe("cifar_small")
    assert small.model.mean == full.model.mean
    assert small.optim.lr == full.optim.lr
    assert small.optim.epochs == 120


def test_an_empty_table_of_options_drops_the_base_s_and_no_other_table_does(tmp_path: Path) -> None:
    base = load_recipe("overfit_small")
    (tmp_path / "mine.toml").write_text(
        'base = "overfit_small"\n[attack]\n[model]\nname = "preact_resnet18"\noptions = {}\n'
    )
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert (base.model.options, recipe.model.options) == ({"width": 16}, {})
    assert recipe.attack == base.attack


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(InputError, match="without a circle"):
        load_recipe(str(tmp_path / "a.toml"))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.epochs=3", "optim.epochs", 3),
        ("attack.eps=4/255", "attack.eps", "4/255"),
        ("data.name=npz:some/file=1.npz", "data.name", "npz:some/file=1.npz"),
        ("optim.decay_epochs=[1, 2]", "optim.decay_epochs", [1, 2]),
        ("model.options.width=4", "model.options", {"width": 4}),
        ("probe.instances=true", "probe.instances", True),
        ("probe.head=backbone.fc", "probe.head", "backbone.fc"),
        ("probe.output=1", "probe.output", 1),
        ("probe.output=out", "probe.output", "out"),
    ],
)
def test_set_changes_one_key(recipe_file: Path, override: str, key: str, value: object) -> None:
    found = load_recipe(str(recipe_file), [override]).model_dump()
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_set_reaches_into_lists(recipe_file: Path) -> None:
    teachers = "distill=[{teacher='a', weight=0.3}, {teacher='b', weight=0.1}]"
    recipe = load_recipe(str(recipe_file), [teachers, "distill.1.weight=0.5", "distill.0.temperature=2.0"])
    assert [(one.weight, one.temperature) for one in recipe.distill] == [(0.3, 2.0), (0.5, 1.0)]
    with pytest.raises(InputError, match=r"distill.2 is not a table"):
        load_recipe(str(recipe_file), [teachers, "distill.2.weight=0.5"])


def test_evaluation_follows_the_training_attack_where_it_is_silent(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["attack.eps=4/255"])
    assert recipe.evaluation_threat().eps == 4 / 255
    assert recipe.evaluation_threat().step_size == 1 / 255
    recipe = load_recipe(str(recipe_file), ["attack.eps=4/255", "evaluate.norm=L2"])
    assert recipe.evaluation_threat().eps == 128 / 255  # another norm's radius would mean nothing


def test_one_word_changes_the_method_and_its_attack_follows() -> None:
    def attacked(*overrides: str) -> tuple[str | None, ThreatModel, ThreatModel]:
        recipe = load_recipe("preact_linf", overrides)
        return recipe.attack.name, recipe.training_threat(), recipe.evaluation_threat()

    linf = ThreatModel("Linf", 8 / 255, 2 / 255, 20)
    assert attacked() == ("PGD", replace(linf, steps=10), linf)
    assert attacked("objective.loss=trades") == ("TPGD", replace(linf, steps=10), linf)
    assert attacked("objective.loss=trades", "attack.name=PGD")[0] == "PGD"
    assert attacked("attack.name=FFGSM")[1].step_size == pytest.approx(1.25 * 8 / 255)
    assert attacked("attack.name=FFGSM", "attack.step_size=eps")[1].step_size == 8 / 255
    assert attacked("attack.name=FGSM")[1].step_size == 8 / 255
    l2 = ThreatModel("L2", 128 / 255, 16 / 255, 20)
    in_l2 = ("attack.norm=L2", "attack.eps=128/255")
    assert attacked(*in_l2) == ("PGD", replace(l2, steps=10), l2)
    assert attacked(*in_l2, "objective.loss=trades")[0] == "TPGD"
    assert attacked("evaluate.norm=L2")[2] == l2


def test_the_written_recipe_spells_out_what_followed() -> None:
    written = tomllib.loads(load_recipe("preact_fast").as_toml())
    assert (written["attack"]["name"], written["attack"]["step_size"]) == ("FFGSM", "1.25*eps")
    assert (written["evaluate"]["name"], written["evaluate"]["step_size"]) == ("PGD", "eps/4")


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if not name.startswith(("digits", "cifar_small"))])
def test_reproductions_attack_in_the_mode_of_the_published_code(name: str) -> None:
    """PGD's in train mode, those of TRADES, MART and temporal ensembling in eval mode."""
    expected = "eval" if any(part in name for part in ("trades", "mart", "_te")) else "train"
    assert load_recipe(name).attack.batchnorm == expected
    other = {"train": "eval", "eval": "train"}[expected]
    assert load_recipe(name, [f"attack.batchnorm={other}"]).attack.batchnorm == other


def test_a_loss_brings_the_mode_of_its_own_code_unless_the_recipe_says_otherwise() -> None:
    assert load_recipe("preact_linf", ["objective.loss=trades"]).attack.batchnorm == "eval"
    assert load_recipe("cifar_small", ["objective.loss=madry"]).attack.batchnorm == "eval"
    assert load_recipe("preact_trades", ["objective={loss='madry'}"]).attack.batchnorm == "train"


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.endswith("_wake")])
def test_wake_is_algorithm_2(name: str) -> None:
    """The average moves in epochs t < t_e; the teacher's weight is above 0 in t > t_s, and 1 in t ≥ t_e."""
    recipe = load_recipe(name)
    (teacher,), average = recipe.distill, recipe.average
    assert teacher.ramp is not None
    assert average is not None
    assert (average.kind, average.every, average.start_epoch) == ("ema", "step", 0)
    assert (teacher.teacher, teacher.weight_after) == ("average", 1.0)
    assert average.stop_epoch == teacher.ramp[1] - 1


def test_what_a_run_does_not_reach_is_named() -> None:
    assert unreached(load_recipe("preact_linf_wake")) == []
    short = load_recipe("preact_linf_wake", ["optim.epochs=100", "awp.start_epoch=100", "ensembling.ramp=[90, 101]"])
    assert unreached(short) == [
        "optim.decay_epochs 100 and 150",
        "awp.start_epoch 100",
        "distill.0.ramp 150",
        "ensembling.ramp 101",
    ]
    assert unreached(load_recipe("preact_linf_kdswa", ["optim.epochs=50"]))[1] == "average.start_epoch 55"
    assert unreached(load_recipe("digits", ["stop={on=['CAS falling'], patience=15}"])) == ["stop.patience 15"]
    cyclic = load_recipe("preact_linf", ["optim.epochs=5", "optim.schedule=cyclic", "optim.warmup_epochs=6"])
    assert unreached(cyclic) == ["optim.warmup_epochs 6"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["data.crop_padding=2", "data.crop_border=zero"], ["data.crop_padding", "data.crop_border"]),
        (["data.augmentation=crop", "data.crop_padding=2", "data.mix_alpha=0.5"], ["data.mix_alpha"]),
        (["optim.schedule=cosine", "optim.decay_epochs=[9]", "optim.decay_rate=0.1"], ["optim.decay_epochs"]),
        (["average={kind='swa', decay=0.9}"], ["average.decay"]),
        (["average={kind='ema', decay=0.9}", "attack.steps=3"], []),
        (["objective.loss=standard", "attack.steps=3", "attack.eps=4/255"], ["attack.steps"]),
    ],
)
def test_what_does_nothing_beside_other_settings_is_named(settings: list[str], named: list[str]) -> None:
    assert idle(load_recipe("preact_linf", ["data.augmentation=none", *settings])) == named


def test_every_setting_of_a_shipped_recipe_does_something() -> None:
    assert {name: found for name in shipped_recipes() if (found := idle(load_recipe(name)))} == {}


def test_all_faults_are_told_at_once(recipe_file: Path) -> None:
    faults = [
        "optim.epoch=3",
        "optim.lr=0",
        "attack.eps=8",
        "model.name=preact_resnet_18",
        "data.name=cifar",
        "objective.loss=madri",
        "seed=1.5",
        "atack.steps=3",
    ]
    with pytest.raises(InputError) as caught:
        load_recipe(str(recipe_file), faults)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(faults)
    assert all(line.startswith(f"{recipe_file} with its overrides: ") for line in lines)
    text = str(caught.value)
    for part in (
        "optim.epoch: expected a known key, found 'epoch'; did you mean 'epochs'",
        "optim.lr: expected greater than 0, found 0",
        "attack.eps: expected 0 to 1 for Linf, found 8; units are pixels in [0, 1], so write e.g. '8/255'",
        "did you mean 'preact_resnet18'",
        "did you mean 'cifar10'",
        "objective.loss: expected 'standard', 'madry', 'trades', 'mart' or 'python:package.module:function', found",
        "seed: expected a valid integer, found 1.5",
        "atack: expected a known key, found 'atack'; did you mean 'attack'",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attack.name=PDG", "did you mean 'PGD'"),
        ("attack.name=PGDL2", "works in L2, but the norm is Linf"),
        ("attack.options.colour=3", "no option 'colour'"),
        ("attack.step_size=eps/0", "step_size"),
        ("attack.eps='8 / two'", "attack.eps"),
        ("evaluate.eps=3", "evaluate.eps: expected 0 to 1"),
        ("attack=3", "attack: expected a valid dictionary"),
        ("attack.eps.x=3", "attack.eps"),
        ("model.std=[0]", "model.std.0: expected greater than 0"),
        ("objective={loss='mart', label_smoothing=0.1}", "objective.label_smoothing: expected 0 with loss 'mart'"),
        ("distill=[{teacher='a', weight=0.7}, {teacher='b', weight=0.4}]", "distill: expected teachers' weights"),
        (
            "distill=[{teacher='a', weight=0.7, ramp=[3, 3]}]",
            "distill.0.ramp: expected a ramp that ends",
        ),
        (
            "distill=[{teacher='a', weigt=0.7, weight=1}]",
            "distill.0.weigt: expected a known key, found 'weigt'; did you",
        ),
        ("distill=[{teacher='a', weight=-1}]", "distill.0.weight: expected greater than or equal to 0, found -1"),
        (
            "distill=[{teacher='average', weight=1.0}]",
            "distill.0.teacher: expected an [average]",
        ),
        (
            "distill=[{teacher='a', weight=0.3, ramp=[1, 3], weight_after=0.7}, {teacher='b', weight=0.4}]",
            "distill: expected teachers' weights that add up to 1 at most, found 1.1 in epoch 3",
        ),
        (
            "distill=[{teacher='a',weight=0.2,ramp=[0,5],weight_after=0.8},{teacher='b',weight=0.5,ramp=[0,10]}]",
            "distill: expected teachers' weights that add up to 1 at most, found 1.3 in epoch 10",
        ),
        ("attack.batchnorm=foo", "attack.batchnorm: expected 'train' or 'eval', found 'foo'"),
        ("distill.².weight=0.1", "write [[distill]]"),
        ("distill=[{teacher='a', weight=0.3, weight_after=0.7}]", "distill.0.weight_after: expected a ramp"),
        ("distill=[{teacher='a', weight=0.3, ramp=['a', 1]}]", "distill.0.ramp.0: expected a valid integer, found 'a'"),
        ("ensembling.ramp=['a', 1]", "ensembling.ramp.0: expected a valid integer, found 'a'"),
        ("ensembling.ramp=[4, 4]", "ensembling.ramp: expected a ramp that ends after it starts"),
        ("attack.name=APGD", "attack.batchnorm: expected 'eval' with attack APGD, which runs the model on parts of"),
        ("distill={teacher='a', weight=0.3}", "distill: expected a valid list, found one table; write [[distill]]"),
        ("objective.loss=python:my/mine.py:margin", "expected python:package.module:name"),
        ("objective.loss=python:nowhere.at.all:loss", "objective.loss: python:nowhere.at.all:loss: importing nowhere"),
        ("average={kind='ema', start_epoch=5, stop_epoch=5}", "average.stop_epoch: expected an epoch after"),
        ("average={kind='ema', deca=0.5}", "average.deca: expected a known key, found 'deca'; did you mean 'decay'"),
        ("probe.head=3", "probe.head: expected a valid string, found 3"),
        ("probe.output=1.5", "probe.output: expected a valid integer or a valid string, found 1.5"),
        ("=3", "overrides: expected key=value"),
        ("optim.epochs", "overrides: expected key=value"),
        ("model.name.x=3", "not a table"),
    ],
)
def test_one_fault_is_one_line(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(str(recipe_file), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_faults_of_several_teachers_are_told_at_once(recipe_file: Path) -> None:
    tables = "{teacher='average', weight=0.9}, {teacher='x', weight=0.9, ramp=[3, 1]}, {teacher='y', weight_after=0.1}"
    with pytest.raises(InputError) as caught:
        load_recipe(str(recipe_file), [f"distill=[{tables}]", "stop={on=['CAS falling']}", "objective.loss=standard"])
    keys = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert keys == [
        *("distill.2.weight", "stop", "distill", "distill.0.teacher", "distill.1.ramp", "distill.2.weight_after"),
    ]


NAMES_CODE = f"""{MINIMAL}[model.options]
factory = "python:nowhere.at.all:factory"
[attack]
name = "python:nowhere.at.all:Attack"
[[distill]]
teacher = "python:zoo.harmful:Model"
weight = 0.5
"""


def test_a_file_may_name_code_only_where_the_user_allows_it(tmp_path: Path) -> None:
    path = tmp_path / "theirs.toml"
    path.write_text(NAMES_CODE)
    (tmp_path / "built_on_it.toml").write_text('base = "theirs"\n')
    for name in ("theirs", "built_on_it"):
        with pytest.raises(InputError) as caught:
            load_recipe(str(tmp_path / f"{name}.toml"), ["attack.name=PGD"])
        lines = str(caught.value).splitlines()
        assert [line.split(": ")[1] for line in lines] == ["model.options.factory", "attack.name", "distill.0.teacher"]
        assert all(line.endswith("if you trust it, add allow_code=True") for line in lines)
    with pytest.raises(InputError, match=r"attack.name: .* importing nowhere.at.all failed"):
        load_recipe(str(path), allow_code=True)


def test_the_command_line_may_name_code(recipe_file: Path) -> None:
    spec = "python:zoo.own_attacks:OneStep"
    recipe = load_recipe(str(recipe_file), [f"attack.name={spec}", "attack.options.scale=0.5", f"evaluate.name={spec}"])
    assert recipe.attack.name == spec
    with pytest.raises(InputError, match="its options: scale; did you mean 'scale'"):
        load_recipe(str(recipe_file), [f"attack.name={spec}", "attack.options.scael=0.5"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = ", "expected TOML"),
        (b"\xff\xfe", "expected TOML"),
        (b"seed = 1\nseed = 2\n", "expected TOML"),
        (b" " * 1_000_001, "under 1 MB"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_recipe(str(tmp_path / "bad.toml"))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(InputError, match="expected a recipe file, found"):
        load_recipe("recipes/nowhere_at_all.toml")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_states_its_seed(name: str) -> None:
    path = shipped_recipes()[name]
    chain = tomllib.loads(path.read_text("utf-8"))
    while "seed" not in chain:
        chain = tomllib.loads((path.parent / f"{chain['base']}.toml").read_text("utf-8"))


def _keys(section: type[BaseModel], prefix: str = "") -> dict[str, object]:
    """Every key of the schema with its default; None where it has none, or needs a value."""
    found: dict[str, object] = {}
    for name, field in section.model_fields.items():
        inner = [one for one in (get_args(field.annotation) or (field.annotation,)) if isinstance(one, type)]
        tables = [one for one in inner if issubclass(one, BaseModel)]
        default = None if field.is_required() else field.default
        found |= _keys(tables[0], f"{prefix}{name}.") if tables else {f"{prefix}{name}": default}
    return found


def _written(content: object, prefix: str = "") -> dict[str, object]:
    tables = content if isinstance(content, dict) else {}
    found: dict[str, object] = {}
    for name, value in tables.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        key = f"{prefix}{name}"
        found |= _written(inner, f"{key}.") if isinstance(inner, dict) and inner else {key: value}
    return found


def test_the_documented_keys_and_defaults_are_the_schemas(tmp_path: Path) -> None:
    block = page("reference/recipe-keys.md").split("<!-- every key -->\n```toml\n")[1].split("```")[0]
    documented, schema = _written(tomllib.loads(block)), _keys(Recipe)
    assert documented.keys() == schema.keys()
    shown = {"objective.loss": "trades"}  # so that beta and TPGD stand beside it
    for key, default in schema.items():
        assert default is None or documented[key] == shown.get(key, default), key
    (tmp_path / "all.toml").write_text(block)
    assert unreached(load_recipe(str(tmp_path / "all.toml"))) == []


def test_pictures_are_of_the_formats_that_a_recipe_names() -> None:
    endings = {
        text: load_recipe("digits", [f"probe.pictures={text}"]).probe.picture_endings
        for text in ("true", "false", "['pdf', 'svg']")
    }
    assert endings == {"true": [".png"], "false": [], "['pdf', 'svg']": [".pdf", ".svg"]}
    with pytest.raises(
        InputError, match=r"probe.pictures: expected true, false or a list of some of png, pdf, svg, found"
    ):
        load_recipe("digits", ["probe.pictures=['jpg']"])
