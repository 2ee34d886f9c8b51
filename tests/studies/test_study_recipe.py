"""The packaged studies, and recipes that are refused."""

import pytest

from aimamba.config import from_mapping
from aimamba.errors import ConfigError
from aimamba.models import AiMConfig
from aimamba.studies.recipe import StudyRecipe, load_study, study_names, training_recipe
from aimamba.studies.runner import count_parameters
from aimamba.studies.scans import scan_order
from aimamba.studies.settings import TokenizerConfig
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.recipe import recipe_names

GRID = {"vocab_size": 2048, "num_tokens": 64, "num_classes": 10}
BASELINE = {
    "kind": "baseline",
    "budget": 8,
    "sweep": {"lrs": [1e-3]},
    "variants": [{"name": "one", "family": "a", "size": "s"}, {"name": "two", "family": "b", "size": "s"}],
}


def sizes(study):
    """Parameters of each variant on the codes of avatars-64."""
    shapes = {v.name: {**study.model, **v.model, **GRID} for v in study.variants}
    return {name: count_parameters(from_mapping(AiMConfig, shape, where=name)) for name, shape in shapes.items()}


def test_names():
    trained = ["ablation", "baseline", "exposure-bias", "mixer", "scaling", "text", "tokenizer"]
    assert study_names() == sorted([*trained, "guidance", "guidance-free"])
    assert not set(study_names()) & set(recipe_names()), "a study is not a training recipe"


@pytest.mark.parametrize("name", study_names())
def test_every_packaged_study_makes_training_recipes(name):
    study = load_study(name)
    kind = {"mixer": "baseline", "exposure-bias": "ablation"}.get(name, name)
    assert (study.kind, bool(study.description)) == (kind, True)
    for variant in study.variants:
        recipe = training_recipe(study, variant, tokenizer="avatars-64", budget=study.budget, seed=3)
        assert recipe.fit.steps * recipe.fit.batch_size == study.budget
        assert recipe.fit.warmup_steps == round(0.05 * recipe.fit.steps)
        assert (recipe.fit.seed, recipe.task["tokenizer"], recipe.stage) == (3, "avatars-64", "generator")
        scan_order(variant.order, 8)


def test_the_models_of_the_baseline_have_the_same_parameters_within_2_percent():
    study = load_study("baseline")
    counted = sizes(study)
    by_size = {variant.size: {} for variant in study.variants}
    for variant in study.variants:
        by_size[variant.size][variant.family] = counted[variant.name]["parameters"]
        assert variant.model["mixer" if variant.family == "attention" else "width"]
    assert len(by_size) >= 2
    for pair in by_size.values():
        assert pair["attention"] == pytest.approx(pair["AiM"], rel=0.02)
    smaller = [v for v in study.variants if v.size == next(iter(by_size))]
    assert all(len(variant.seeds or study.seeds) >= 3 for variant in smaller)


def test_the_mixers_of_a_study_have_the_same_parameters_within_2_percent():
    study = load_study("mixer")
    counted = [found["parameters"] for found in sizes(study).values()]
    assert max(counted) < 1.02 * min(counted)
    shapes = [from_mapping(AiMConfig, {**study.model, **v.model, **GRID}, where="test") for v in study.variants]
    assert [(shape.mixer, shape.hybrid_every) for shape in shapes] == [
        ("mamba2", 0),
        ("attention", 0),
        ("gated-deltanet", 0),
        ("mamba3", 0),
        ("mamba2", 3),
    ]
    assert len({(shape.width, shape.num_blocks) for shape in shapes}) == 1
    assert len(study.seeds) >= 3


def test_scaling_spans_one_and_a_half_orders_of_magnitude():
    counted = [found["parameters"] for found in sizes(load_study("scaling")).values()]
    assert len(counted) >= 5
    assert counted == sorted(counted)
    assert counted[-1] / counted[0] > 10**1.5


def test_ablation_has_the_rows_of_table_4_and_the_orders():
    study = load_study("ablation")
    shapes = {v.name: from_mapping(AiMConfig, {**study.model, **v.model, **GRID}, where="test") for v in study.variants}
    kinds = [(shape.positions, shape.adaln) for shape in shapes.values()]
    assert {("none", "none"), *(("learned", kind) for kind in ("none", "single", "group", "block"))} == set(kinds)
    assert {variant.order for variant in study.variants} == {"raster", "snake", "column", "hilbert"}
    assert 1 in study.judging.scales
    assert len(study.judging.scales) == 2


def test_exposure_bias_has_a_control_and_schedules_that_end_before_training_does():
    study = load_study("exposure-bias")
    settings = {v.name: from_mapping(GeneratorTaskConfig, v.task, where=v.name) for v in study.variants}
    assert settings["usual"] == GeneratorTaskConfig()
    assert all(one != GeneratorTaskConfig() for name, one in settings.items() if name != "usual")
    steps = study.budget // study.fit["batch_size"]
    ends = [one.code_noise_until or one.random_order_until for one in settings.values()]
    assert {end for end in ends if end} == {round(0.75 * steps)}
    assert settings["rear"].rear_weight == settings["heads"].rear_weight == 1
    assert settings["rear"].noise == settings["noise"].noise


def test_text_compares_what_reads_captions_and_how_they_reach_the_generator():
    study = load_study("text")
    shapes = {v.name: from_mapping(AiMConfig, {**study.model, **v.model, **GRID}, where="test") for v in study.variants}
    assert {name: shape.text and (shape.text.reach, shape.text.ngrams > 0) for name, shape in shapes.items()} == {
        "joint": ("both", False),
        "prefix": ("prefix", False),
        "adaln": ("adaln", False),
        "phrases": ("both", True),
        "phrases-adaln": ("adaln", True),
        "frozen": ("both", False),
        "classes": None,
    }
    assert len(study.seeds) == 3
    assert study.text_encoders == ("minilm",)
    recipes = {v.name: training_recipe(study, v, tokenizer="t", budget=1, seed=0) for v in study.variants}
    assert [name for name, recipe in recipes.items() if recipe.task.get("text_encoder")] == ["frozen"]
    moved = study.with_text_encoder("folder")
    assert moved.text_encoders == ("folder",)
    assert [v.task for v in moved.variants if v.name != "frozen"] == [{}] * 6


def test_guidance_has_every_scale_with_every_schedule():
    drawn = [(s.cfg_scale, s.cfg_schedule) for s in load_study("guidance").judging.samplings()]
    schedules = ("constant", "linear", "power-cosine")
    assert drawn == [(1, "constant"), *((scale, s) for s in schedules for scale in (1.25, 1.5, 2, 3, 4))]


def test_guidance_free_has_intervals_a_control_and_models_that_are_contrasted():
    study = load_study("guidance-free")
    drawn = study.judging.samplings()
    within = [s for s in drawn if (s.cfg_start, s.cfg_end) != (0, 1)]
    assert [[s.cfg_scale, s.cfg_start, s.cfg_end] for s in within] == [list(one) for one in study.judging.intervals]
    assert drawn[-len(within) :] == within
    objectives = [variant.task.get("objective", "likelihood") for variant in study.variants]
    assert objectives.count("likelihood") == 1
    assert objectives.count("cca") == len(objectives) - 1 >= 1


def test_a_budget_scales_the_steps_and_their_schedule():
    study = load_study("scaling")
    small, large = (
        training_recipe(study, study.variants[0], tokenizer="t", budget=budget, seed=0).fit for budget in (6400, 64000)
    )
    assert (small.steps, small.warmup_steps, large.steps, large.warmup_steps) == (200, 10, 2000, 100)
    assert training_recipe(study, study.variants[0], tokenizer="t", budget=1, seed=0).fit.steps == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget must be at least 1 image, got 0"),
        ({"kind": "guidance", "variants": [], "budget": 3}, "budget must be at least 4 images, got 3"),
        ({"budget": 10**400}, "budget must be at most 1,000,000,000,000 images"),
        ({"data": {"crop": "random"}}, "data.crop must be 'center' in a study: the images .* are encoded once"),
        ({"seeds": []}, "seeds must hold at least one number"),
        ({"warmup": 2.0}, r"warmup must lie in \[0, 1\], got 2.0"),
        ({"variants": []}, "a study of kind 'baseline' needs variants"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "variants: a appears twice"),
        ({"variants": [{"name": "a/b"}]}, "a name may contain letters, digits, dots and dashes, got 'a/b'"),
        ({"variants": [{"name": "a" * 101}]}, r"a name may have 100 characters, got 101 in a+\.\.\.$"),
        ({"variants": [{"name": "a", "order": "zigzag"}]}, "order of a must be one of raster, .* got 'zigzag'"),
        ({"variants": [{"name": "a", "color": 1}]}, "unknown key 'color'"),
        (
            {"variants": BASELINE["variants"][:1]},
            "needs two or more families of variants with the same sizes and seeds",
        ),
        (
            {"variants": [*BASELINE["variants"], {"name": "third", "family": "third", "size": "other"}]},
            "needs two or more families of variants with the same sizes and seeds, got .*third other",
        ),
        ({"sweep": None}, "a study of kind 'baseline' needs the section sweep"),
        ({"sweep": {"lrs": []}}, "sweep.lrs must hold at least one learning rate"),
        ({"sweep": {"lrs": [1e-3], "share": 0.0}}, r"sweep.share must lie in \(0, 1\], got 0.0"),
        ({"sweep": {"lrs": [1e-3, -1.0]}}, r"sweep.lrs must be positive numbers, got \[-1.0\]"),
        ({"speed": {"tokens": [0]}}, r"speed.tokens must be numbers of at least 1, got \[0\]"),
        ({"speed": {"batches": [1, 1 << 40]}}, "speed.batches must be numbers of at most 65,536, got"),
        (
            {"sweep": {"lrs": [1e-3, 1.0000001e-3]}},
            "sweep.lrs must differ as they are printed, but 0.001",
        ),
        ({"judging": {"samples": 3}}, "judging.samples must be at least 4, got 3"),
        ({"judging": {"scales": [1.5, 1.5000001]}}, "judging.scales, .* as they are printed, but '1.5' appears twice"),
        ({"judging": {"scales": [2], "schedules": ["linear", "linear"]}}, "'linear' appears twice; leave one out"),
        ({"judging": {"intervals": [[2, 0, 0.5], [2, 0, 0.5000001]]}}, "'constant-2-from-0-to-0.5' appears twice"),
        ({"judging": {"intervals": [[2, 0, 0.5], [2, 0, 0.501]]}}, "'2 from 0% to 50%' appears twice"),
        ({"judging": {"scales": [2], "intervals": [[2, 0, 1]]}}, "'constant-2' appears twice"),
        ({"seeds": [0, 1, 0]}, r"seeds must be different numbers, none negative, got \[0, 1, 0\]"),
        ({"variants": [{"name": "a", "seeds": [-1]}]}, r"seeds must be different numbers, none negative, got \[-1\]"),
        ({"fit": {"steps": 5}}, "fit.steps is decided by the study; leave it out"),
        ({"task": {"tokenizer": "vq"}}, "task.tokenizer is decided by the study; leave it out"),
        ({"variants": [{"name": "a", "model": {"vocab_size": 4}}]}, "model.vocab_size is decided by the study"),
        ({"judging": {"scales": []}}, "judging.scales must hold at least one value"),
        (
            {"judging": {"scales": [2], "schedules": ["cosine"]}},
            r"schedules\[0\] must be one of .*, got 'cosine'",
        ),
        ({"judging": {"scales": [-1]}}, "cfg-scale must be from 0 to 1,000,000"),
        (
            {"judging": {"intervals": [[2.0, 0.5]]}},
            r"judging.intervals holds lists of scale, start and end, as in \[2.0, 0.0, 0.5\]; got \[2.0, 0.5\]",
        ),
        ({"judging": {"intervals": [[2.0, 0.5, 0.2]]}}, "cfg-start and cfg-end must be shares"),
        ({"kind": "guidance-free", "variants": []}, "a study of kind 'guidance-free' needs variants"),
        (
            {"kind": "guidance-free", "variants": [{"name": "a", "model": {"width": 8}}]},
            "'guidance-free' keeps shape and order of its model; leave out model and order of a",
        ),
        ({"kind": "guidance-free", "model": {"width": 8}}, "keeps shape and order of its model"),
        ({"kind": "scalin"}, "did you mean 'scaling'"),
    ],
)
def test_refusals(changes, message):
    from_mapping(StudyRecipe, BASELINE, where="test")
    with pytest.raises(ConfigError, match=message):
        from_mapping(StudyRecipe, {**BASELINE, **changes}, where="test")


def test_guidance_trains_nothing_so_its_images_may_be_cropped_anyhow():
    study = from_mapping(StudyRecipe, {"kind": "guidance", "budget": 8, "data": {"crop": "random"}}, where="test")
    assert study.data.crop == "random"


@pytest.mark.parametrize("share", [0.0, 1001.0, 1e308])
def test_a_share_of_the_budget_has_bounds(share):
    with pytest.raises(ConfigError, match=r"tokenizer.share must be a positive number of at most 1,000, got"):
        TokenizerConfig(share=share)


def test_a_setting_of_fit_that_does_not_fit():
    study = from_mapping(StudyRecipe, {**BASELINE, "fit": {"batch_size": 0, "lr": 1.0}}, where="test")
    with pytest.raises(ConfigError, match=r"fit.batch_size must be at least 1, got 0"):
        training_recipe(study, study.variants[0], tokenizer="t", budget=8, seed=0)
