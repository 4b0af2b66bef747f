"""The printed numbers: complete, and each contradiction that is claimed follows from them."""

import numpy as np
import pytest

from neurotome.experiments.reproduction.published import SCORES, read_mtneuro, read_report

TABLES = {table.number: table for table in read_report()}
PIXELS = {row.split: row.values for row in TABLES[1].rows}


def read_classes(number):
    """Classes and scores (classes, 3) of a table of classes, and the pixels of each class."""
    rows = TABLES[number].rows
    scores = np.array([[row.values[key] for key in SCORES] for row in rows])
    return scores, np.array([PIXELS[row.split][row.mean] for row in rows])


def find_row(number, name):
    (row,) = [row for row in TABLES[number].rows if row.name == name]
    return row, np.array([row.values[key] for key in SCORES])


def test_all_fourteen_tables_are_there():
    assert list(TABLES) == list(range(1, 15))
    assert [len(TABLES[number].rows) for number in TABLES] == [3, 8, 6, 6, 6, 6, *[4] * 8]
    for table in TABLES.values():
        assert all(set(row.values) == set(table.columns) for row in table.rows)


def test_a_row_knows_where_its_score_stands():
    assert find_row(4, "UNet18")[0].find_score("f1") == "macro.f1"
    assert find_row(9, "blood vessel")[0].find_score("recall") == "per_class.blood vessel.recall"


def test_table_1_counts_whole_slices():
    for counts in PIXELS.values():
        assert sum(counts[name] for name in ("background", "blood vessel", "cell", "axon")) == counts["slices"] * 256 * 256


def test_training_row_of_table_6_cannot_follow_from_table_7():
    scores, pixels = read_classes(7)
    row, printed = find_row(6, "train, weighted")
    follows = np.average(scores, axis=0, weights=pixels)
    assert follows.round(2) == pytest.approx([0.95, 0.96, 0.95])
    assert (printed - follows > 0.005 + 0.005).all()  # more than rounding of both
    assert row.doubts == (2,)


@pytest.mark.parametrize(("number", "split"), [(8, "validation"), (9, "test")])
def test_the_other_rows_of_table_6_are_those_of_linknet(number, split):
    scores, pixels = read_classes(number)
    for mean, follows in (("macro", scores.mean(0)), ("weighted", np.average(scores, axis=0, weights=pixels))):
        assert np.abs(find_row(6, f"{split}, {mean}")[1] - follows).max() <= 0.01


def test_table_10_exchanges_precision_and_recall_of_table_9():
    for name in ("background", "axon"):
        row, unet = find_row(10, name)
        linknet = find_row(9, name)[1]
        assert unet == pytest.approx(linknet[[1, 0, 2]])
        assert row.doubts == (1,)


def test_vessels_beat_cells_in_table_12_alone():
    above = [n for n in range(7, 15) if find_row(n, "blood vessel")[1][2] > find_row(n, "cell")[1][2]]
    assert above == [12]
    assert all(find_row(12, name)[0].doubts for name in ("cell", "blood vessel"))


def test_published_means_are_those_of_their_classes():
    for published in read_mtneuro().values():
        for values in published.f1.values():
            assert len(values) == len(published.classes) + 1
            assert np.mean(values[:-1]) == pytest.approx(values[-1], abs=0.0151)
