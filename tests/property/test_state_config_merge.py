"""Merging layers of configuration."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skylib.config.layers import Layer, Origin, leaves, located, merge, plain

_keys = st.sampled_from("abc")
_values = st.integers() | st.text(max_size=3) | st.none() | st.lists(st.integers(), max_size=3)
_trees = st.recursive(
    st.dictionaries(_keys, _values, max_size=3), lambda inner: st.dictionaries(_keys, _values | inner, max_size=3)
)
_ONE, _TWO, _THREE = (Origin(source=name) for name in ("one", "two", "three"))


def _merged(base: object, over: object) -> object:
    """What is asked for, in as few words as can be."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: _merged(base.get(key), over[key]) if key in over else base[key] for key in {**base, **over}}
    return over


@given(_trees, _trees)
def test_maps_merge_and_the_rest_replaces(base: dict[str, object], over: dict[str, object]) -> None:
    """Lists too are replaced as a whole."""
    assert plain(merge(located(base, _ONE), located(over, _TWO))) == _merged(base, over)


@given(_trees)
def test_nothing_merges_to_the_same(tree: dict[str, object]) -> None:
    """An empty layer changes nothing, and a tree is what it is made of."""
    layer = located(tree, _ONE)
    assert merge({}, layer) == merge(layer, {}) == merge(layer, layer) == layer
    assert plain(layer) == tree


@given(_trees, _trees)
def test_every_leaf_keeps_its_origin(base: dict[str, object], over: dict[str, object]) -> None:
    """What the upper layer has is the upper layer's, the rest the lower one's."""
    upper = dict(leaves(located(over, _TWO)))
    for path, setting in leaves(merge(located(base, _ONE), located(over, _TWO))):
        assert setting.origin is (_TWO if path in upper else _ONE)


@given(_trees, _trees, _trees)
def test_merging_is_associative(first: dict[str, object], second: dict[str, object], third: dict[str, object]) -> None:
    """Layers may be put together from below or from above, origins included."""
    one, two, three = located(first, _ONE), located(second, _TWO), located(third, _THREE)
    assert merge(merge(one, two), three) == merge(one, merge(two, three))


@given(st.lists(_trees, max_size=5))
def test_the_last_layer_that_has_a_leaf_decides_it(trees: list[dict[str, object]]) -> None:
    """Its value and its origin; unless a later one has no map where the leaf's map was."""
    layers = [located(tree, Origin(source=str(number))) for number, tree in enumerate(trees)]
    merged: Layer = {}
    for layer in layers:
        merged = merge(merged, layer)
    for path, setting in leaves(merged):
        owners = [layer for layer in layers if path in dict(leaves(layer))]
        assert setting == dict(leaves(owners[-1]))[path]


@given(_trees, _trees)
def test_merging_changes_neither_layer(base: dict[str, object], over: dict[str, object]) -> None:
    """Layers are values."""
    one, two = located(base, _ONE), located(over, _TWO)
    merge(one, two)
    assert (plain(one), plain(two)) == (base, over)
