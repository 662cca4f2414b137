"""Recipes as text: what parses, what prints, what is refused; chains that the formats allow."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoregraph.errors import BadRecipe, UnknownName
from scoregraph.passes.quantize.recipe import MAGNITUDE, NAMES, TOP, Recipe, chain_limit, parse_recipe

OPTIONS = st.fixed_dictionaries(
    {
        "block": st.sampled_from([0, 32, 96]),
        "groups": st.integers(0, 9),
        "attention": st.sampled_from(["f32", "bf16", "i8"]),
        "conv": st.booleans(),
        "modulation": st.booleans(),
        "smooth": st.sampled_from(["conv", "yes", "no"]) | st.floats(0, 1),
        "clip": st.booleans(),
        "spare": st.floats(0, 1, exclude_max=True),
        "keep": st.lists(st.sampled_from(["*.out", "unet.mid*", "a[0-3]"]), unique=True).map(tuple),
    }
)


@pytest.mark.parametrize("name", NAMES)
def test_the_named_recipes_print_as_their_names(name):
    recipe = parse_recipe(name)
    assert (recipe is None) == (name == "none")
    assert recipe is None or str(recipe) == name


@given(st.sampled_from(["i8", "i7", "i6", "i4", "i2"]), st.sampled_from(["u8", "u7"]), OPTIONS)
def test_a_recipe_is_its_text(weights, activations, options):
    recipe = Recipe(weights, activations, **options)
    assert parse_recipe(str(recipe)) == recipe


def test_options_are_read():
    recipe = parse_recipe("w4a8:block=64,groups=4,attention=i8,conv=no,modulation=no,clip=no,keep=*.down|unet.mid*")
    assert recipe == Recipe("i4", "u8", 64, 4, "i8", False, False, "conv", False, keep=("*.down", "unet.mid*"))
    assert parse_recipe("w8a8:groups=dynamic") == Recipe()
    assert parse_recipe("w8a8:clip").clip
    assert parse_recipe("w8a8:smooth=0.5,spare=5%") == Recipe(smooth=0.5, spare=0.05)
    assert parse_recipe("w4a8").clip, "few levels are searched by default"
    assert not parse_recipe("w8a8").clip
    assert parse_recipe("bf16:attention=bf16,conv=no") == Recipe("bf16", "bf16", attention="bf16", conv=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [("w8", "'w8a8'"), ("w3a8", "'w"), ("int8", "known: "), ("w8a8:grops=4", "'groups'"), ("none:groups=1", "known: ")],
)
def test_unknown_names_are_told_what_is_close(text, told):
    with pytest.raises(UnknownName, match="there is no") as caught:
        parse_recipe(text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["w8a8:block=33", "w8a8:block=-32", "w8a8:groups=some", "w8a8:groups=-1", "w8a8:attention=fp8", "w8a8:conv=maybe",
     "w8a8:block", "w8a8:smooth=1.5", "w8a8:smooth=much", "w8a8:smooth=nan", "w8a8:spare=100%", "w8a8:spare=-1%",
     "w8a8:spare=some", "bf16:smooth=yes", "bf16:groups=2", "bf16:block=32"],
)  # fmt: skip
def test_values_that_an_option_has_not_are_refused(text):
    with pytest.raises(BadRecipe, match="expected"):
        parse_recipe(text)


def test_bf16_goes_with_bf16_only():
    with pytest.raises(BadRecipe):
        Recipe("bf16", "u8")


def test_a_layer_is_kept_by_a_pattern():
    recipe = parse_recipe("w8a8:keep=*.out|unet.mid*")
    assert recipe.keeps("block.out")
    assert recipe.keeps("unet.mid.conv")
    assert not recipe.keeps("block.out.0")


def test_chains_are_the_longest_that_16_bits_hold():
    expected = {
        ("i8", "u7"): 1, ("i7", "u7"): 2, ("i6", "u7"): 4, ("i4", "u8"): 8, ("i4", "u7"): 16, ("i2", "u8"): 32,
        ("i8", "u8"): 0, ("i7", "u8"): 1, ("i6", "u8"): 2, ("i2", "u7"): 32,
    }  # fmt: skip
    for pair in itertools.product(MAGNITUDE, TOP):
        limit = chain_limit(*pair)
        assert limit == expected[pair]
        product = 2 * MAGNITUDE[pair[0]] * TOP[pair[1]]
        assert limit * product <= 32767
        assert limit == 32 or (limit + 1) * product > 32767
