"""The project file: strict reading, numbers, overrides, weights."""

from __future__ import annotations

import pytest
from command_line import PROJECT

from cptplan.config import check_weights, parse_weights, parse_yaml, project_text, read_project
from cptplan.errors import ConfigError


@pytest.fixture
def path(tmp_path):
    (tmp_path / "cptplan.yaml").write_text(PROJECT)
    return tmp_path / "cptplan.yaml"


def test_project_reads_back_as_it_was_written(path, tmp_path):
    project = read_project(path)
    (tmp_path / "again.yaml").write_text(project_text(project))
    assert read_project(tmp_path / "again.yaml") == project
    assert project.pilot.total_steps == 8


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-1E+3", -1000.0),
        ("2.e3", 2000.0),
        ("1.5e9", 1.5e9),
        ("1e", "1e"),
        ("e5", "e5"),
        ('"x1e5"', "x1e5"),
        ("0x10", 16),
        ("on", "on"),
        ("[1e2, {a: 3e1}]", [100.0, {"a": 30.0}]),
    ],
)
def test_yaml_values(text, value):
    assert parse_yaml(text, "here") == value


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "a: 1\na: 2", "{", "a:\n\t- 1"])
def test_broken_yaml_names_the_place(text):
    with pytest.raises(ConfigError, match=r"^file must be YAML; got .* in here:\d\. "):
        parse_yaml(text, "here")


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("pilot.num_runs=12", lambda p: p.pilot.num_runs, 12),
        ("model.pretrain_peak_lr=1e-4", lambda p: p.model.pretrain_peak_lr, 1e-4),
        ("name=other", lambda p: p.name, "other"),
        ("goal.max_general_increase=0.03", lambda p: p.goal.max_general_increase, 0.03),
        ("pilot.replay_range=[0.1, 0.4]", lambda p: p.pilot.replay_range, (0.1, 0.4)),
        ("goal.weights={general: 1, domain: 3}", lambda p: p.goal.weights, {"general": 1.0, "domain": 3.0}),
        ("name=a=b", lambda p: p.name, "a=b"),
    ],
)
def test_override(path, override, read, value):
    assert read(read_project(path, [override])) == value


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("goal.max_general_increase=3%", lambda p: p.goal.max_general_increase, 0.03),
        ("goal.max_general_increase=2.5 %", lambda p: p.goal.max_general_increase, 0.025),
        ("goal.confidence=95%", lambda p: p.goal.confidence, 0.95),
        ("goal.risk=cvar:0.8", lambda p: p.goal.cvar, 0.8),
        ("goal.risk=mean", lambda p: p.goal.cvar, None),
        ("budget={usd: 100, deadline_hours: 3}", lambda p: p.budget.amounts, {"usd": 100.0, "deadline_hours": 3.0}),
        ("search.schedules=[wsd, cosine]", lambda p: p.search.schedules, ("wsd", "cosine")),
    ],
)
def test_goal_budget_and_search(path, override, read, value):
    assert read(read_project(path, [override])) == value


def test_later_override_wins(path):
    assert read_project(path, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["seed", "=3", "name.x=1", "model.starts.path=x"])
def test_override_that_names_nothing(path, override):
    with pytest.raises(ConfigError, match="--set must"):
        read_project(path, [override])


def test_rates_default_to_a_thirtieth_of_pretraining(path):
    assert read_project(path).peak_lr_range == pytest.approx((1e-4, 3e-3))
    assert read_project(path, ["pilot.peak_lr_range=[1e-3, 2e-3]"]).peak_lr_range == (1e-3, 2e-3)


def test_example_names_only_known_keys_and_checks_out():
    from importlib.resources import files

    project = read_project(files("cptplan") / "example.yaml")
    assert project.goal.weights == {"general": 0.4, "domain": 0.6}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pilot.warmup_steps=8"], "pilot.total_steps must be greater than pilot.warmup_steps; got 8 and 8"),
        (
            ["pilot.processes=3"],
            "pilot.batch_tokens must be a multiple of data.seq_len x pilot.processes, 192; got 256",
        ),
        (["pilot.peak_lr_range=[2e-3, 1e-3]"], "pilot ranges must rise"),
        (["budget.tokens=2047"], "budget.tokens must be at least a pilot's tokens, 2048; got 2047"),
        (["model.starts=[{name: a, path: x}, {name: a, path: y}]"], "model.starts must have different names; got a, a"),
        (["data.validation_share=0.9"], "validation_share must be at most 0.5; got 0.9"),
        (["budget={hardware: h100-sxm}"], "budget must give an amount; got none of tokens, flops, gpu_hours, usd"),
        (["budget.usd=-1"], "budget.usd must be greater than 0; got -1"),
        (["budget.max_epochs=0.5"], "budget.max_epochs must be at least 1; got 0.5"),
        (["goal.max_general_increase=-3%"], "goal.max_general_increase must be a number; got '-3%'"),
        (["goal.confidence=120%"], "goal.confidence must be less than 1; got"),
        (["goal.risk=cvar:2"], "goal.risk must be mean or cvar:<share>; got 'cvar:2'"),
        (["goal.risk=worst"], "goal.risk must be mean or cvar:<share>; got 'worst'"),
        (["search.schedules=[]"], "search.schedules must have 1 or more entries"),
        (
            ["search.schedules=[cosin]"],
            "search.schedules.0 must be 'constant', 'wsd', 'cosine' or 'linear'; got 'cosin'",
        ),
        (["pilot.precision=fp16"], "precision must be 'fp32' or 'bf16'; got 'fp16'"),
    ],
)
def test_rule_over_the_project(path, overrides, message):
    with pytest.raises(ConfigError, match=r"cptplan\.yaml") as caught:
        read_project(path, overrides)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "domains", "weights"),
    [
        ("general=0.4", ["code"], {"general": 0.4, "code": 0.6}),
        ("general=0.4", ["code", "law"], {"general": 0.4, "code": 0.3, "law": 0.3}),
        ("general=2, code=6", ["code"], {"general": 0.25, "code": 0.75}),
        ("code=1", ["code"], {"general": 0.0, "code": 1.0}),
        ("general=0", ["code"], {"general": 0.0, "code": 1.0}),
        ("general=3", ["code"], {"general": 1.0, "code": 0.0}),
        ("general=0,code=0", ["code", "law"], {"general": 0.0, "code": 0.0, "law": 1.0}),
    ],
)
def test_weights(text, domains, weights):
    assert parse_weights(text, domains) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("general=-0.1", "weights must be >= 0; got general=-0.1"),
        ("general=inf", "weights must be >= 0; got general=inf"),
        ("general=nan", "weights must be >= 0; got general=nan"),
        ("general=0,code=0", "weights must not all be zero; got 0 for general, code"),
        ("code:1", "must be name=number pairs; got 'code:1'"),
        ("", "must be name=number pairs; got ''"),
        ("coed=1", "weights must name a validation set; got 'coed'"),
    ],
)
def test_weights_that_break_a_rule(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_weights(text, ["code"])
    assert message in caught.value.message


def test_misspelt_weight_gets_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        check_weights({"coed": 1.0}, ["code"], "here")
    assert caught.value.hint == "did you mean 'code'?"


def test_weights_of_a_domain_of_another_name(path):
    """The default weighs general text; what else there is shares the rest."""
    from cptplan.decide import goal_weights

    project = read_project(path, ["data.domains=[{name: code, path: x}]"])
    assert goal_weights(project, None) == pytest.approx({"general": 0.4, "code": 0.6})
    assert goal_weights(project, "code=1") == {"general": 0.0, "code": 1.0}
