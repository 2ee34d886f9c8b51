import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from aimamba.data.splits import hash_fraction, select

NAMES = [f"class{i % 7}/{i}.png" for i in range(4000)]


def test_the_hash_never_changes():
    assert hash_fraction("cats/1.png") == 0.07633799164032085
    assert hash_fraction("ä/ö.jpg") == hash_fraction(unicodedata.normalize("NFD", "ä/ö.jpg"))


def test_the_share_is_about_what_was_asked_for():
    assert 0.035 < len(select(NAMES, "held-out", 0.05)) / len(NAMES) < 0.065
    assert 0.27 < len(select(NAMES, "held-out", 0.3)) / len(NAMES) < 0.33


def test_files_that_come_or_go_move_no_other_file():
    before = {NAMES[index] for index in select(NAMES[:2000], "held-out", 0.05)}
    after = {NAMES[index] for index in select(NAMES, "held-out", 0.05)}
    assert before == {name for name in after if name in set(NAMES[:2000])}


@given(
    st.lists(st.text(min_size=1, max_size=5), unique_by=lambda name: unicodedata.normalize("NFC", name), max_size=12)
)
def test_the_two_sides_are_disjoint_complete_and_not_empty(names):
    for fraction in (0.001, 0.05, 0.5, 0.999):
        train, held_out = select(names, "train", fraction), select(names, "held-out", fraction)
        assert sorted(train + held_out) == list(range(len(names))) == select(names, "all", fraction)
        if len(names) >= 2:
            assert train
            assert held_out


def test_in_a_handful_the_smallest_hash_is_held_out():
    names = ["a/1.png", "a/2.png", "b/1.png"]
    hashes = [hash_fraction(name) for name in names]
    assert min(hashes) > 0.05  # so none would be held out by its hash alone
    assert select(names, "held-out", 0.05) == [hashes.index(min(hashes))]


def test_a_lone_image_is_trained_on():
    assert select(["a.png"], "train", 0.999) == [0]
    assert select(["a.png"], "held-out", 0.999) == []
