"""Publishing the model of a run: its card, and the page of all cards."""

import json
from pathlib import Path

import pytest

from egno_jax import published
from experiments import publish, run_records


def test_the_page_is_that_of_the_published_models():
    page = Path(publish.__file__).parent.parent / "docs" / "models.md"
    assert page.read_text() == publish.page(published.names())


@pytest.mark.parametrize("name", published.names())
def test_recipes_are_those_of_the_texts_and_none_is_missing(name, tmp_path):
    recipe = published.load(name).recipe
    assert recipe is not None and recipe == publish.recipe_of(name)
    text = (Path(published.__file__).parent / f"{name}.json").read_text()
    (tmp_path / f"{name}.json").write_text(json.dumps({**json.loads(text), "recipe": None}))
    publish.write_recipe(name, tmp_path)
    assert json.loads((tmp_path / f"{name}.json").read_text()) == json.loads(text)


def test_a_card_is_made_of_a_finished_run_alone(tmp_path):
    with pytest.raises(ValueError, match=r"name: got 'other'"):
        publish.card(tmp_path, "other")
    with pytest.raises(ValueError, match=r"there is no results\.json"):
        publish.card(tmp_path, "nbody")
    line = run_records.RESULTS.read_text().splitlines()[0]
    (tmp_path / "results.json").write_text(json.dumps(json.loads(line) | {"finished": False}))
    with pytest.raises(ValueError, match="stopped"):
        publish.card(tmp_path, "nbody")
